"""What a person did wrong, said in one line; the command lines turn it into exit status 2."""

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """A user's mistake: the message says what was wrong, with what value, and what would be right."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ZooError:
    """The error for a name that is not in `known`: it lists the nearest ones, or all where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if near:
        return ZooError(f"unknown {kind} {name!r}; did you mean {', '.join(near)}?")
    return ZooError(f"unknown {kind} {name!r}; there are {', '.join(known) or 'none'}")
