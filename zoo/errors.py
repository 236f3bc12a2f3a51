"""Errors for users, one line each, and the exit status of a command line."""

import difflib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable


class ZooError(ValueError):
    """A user's mistake: the message says what was wrong, with what value, and what would be right."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ZooError:
    """The error for a name that is not in `known`: it lists the nearest names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if near:
        return ZooError(f"unknown {kind} {name!r}; did you mean {', '.join(near)}?")
    return ZooError(f"unknown {kind} {name!r}; there are {', '.join(known) or 'none'}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters; its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def exit_status(command: Callable[[], object], extra: str = "") -> int:
    """The exit status of a command line: what it returns, or 0; 2 after a user's mistake. Errors and warnings are
    printed in one line.

    If the reader of the output has gone, as `head` does, the status is 128 + SIGPIPE and nothing is printed. (SIGPIPE
    itself stays ignored, as Python has it: it would end a run whose connection to another process breaks.) What the
    output's encoding does not have, as a byte of a file's name that is not UTF-8, is printed as an escape. `extra` is
    printed where a package is missing.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            try:
                status = command()
            finally:
                sys.stdout.flush()  # a closed pipe raises here at the latest, not when Python exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 128 + signal.SIGPIPE
    except (ZooError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("zoo", "train", "benchmarks") or not extra:
            raise
        print(f"error: {error}; {extra}", file=sys.stderr)
        return 2
    return status if type(status) is int else 0
