"""The messages of a running run: to the terminal, to train.log, and to status.json.

train.log is locked as long as its run lives, so that a second run in the same folder is refused and `python -m train
status` recognises a run that was killed.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import traceback
import warnings
from typing import Any

import jax

from train import processes
from train.records import write_text
from train.timing import Phases
from zoo.errors import ZooError

BEAT = 2.0  # seconds from one status.json to the next
PATIENCE = 1.0  # seconds to wait for the lock, which `lives` holds for a moment
PASSING = 30.0  # seconds between the log's lines during a long evaluation
ACTIVITIES = {
    "setup": "setting up",
    "compile": "compiling the step",
    "train": "training",
    "evaluate": "evaluating",
    "checkpoint": "saving",
    "report": "writing the report",
}


class Journal:
    """Messages, and a thread that watches for stalls; of several processes the first one writes, and all are watched.

    After `stall` seconds without a step, an evaluated batch or a new activity the main thread's stack is shown; the run
    is left alone. Of several processes, which wait for one another, those that are behind are named: each records its
    progress in `.beats/`. `found` is the folder's `footprint` when the run read its settings, if any.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, stall: float, phases: Phases, found: tuple | None = None):
        self.workdir, self.stall, self.phases, self.process = workdir, stall, phases, jax.process_index()
        self.about: dict[str, Any] = {"step": 0, "steps": steps, "steps_per_second": None, "detail": ""}
        refused: Exception | None = None
        try:
            self._log = _locked(workdir, found) if self.process == 0 else None
        except (ZooError, OSError) as error:
            refused = error
        if processes.any_says(refused is not None):
            raise refused or ZooError(f"another run is at work in {str(workdir)!r}, or was while this one began")
        self._live = sys.stdout.isatty() and self.process == 0
        self._beaten = self._passed = time.perf_counter()
        self._beats = 0  # the same in every process that is as far
        self._folder = workdir / ".beats" if jax.process_count() > 1 else None
        self._warned, warnings.showwarning = warnings.showwarning, self._warn
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="journal", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Prints and logs a line."""
        self._show(line, end="\n")

    def progress(self, line: str) -> None:
        """Prints and logs a line that the next one replaces on a terminal."""
        self._show(line, end="" if self._live else "\n")

    def _show(self, line: str, end: str) -> None:
        if self.process == 0:
            print(f"\r{line:<90}" if self._live else line, end=end, flush=True)
            self.note(line)

    def note(self, text: str) -> None:
        """Logs lines, with the time of day."""
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S ")
            with contextlib.suppress(OSError, ValueError):  # a full disk, a closed file: no reason to stop
                self._log.write("".join(f"{stamp}{line}\n" for line in text.splitlines()))
                self._log.flush()

    def beat(self, **about: Any) -> None:
        """Records progress; `about` updates status.json."""
        self.about |= about
        self._beaten = time.perf_counter()
        self._beats += 1

    def passing(self, done: int, total: int) -> None:
        """Records the progress of an evaluation."""
        self.beat(detail=f"{done} of {total} batches" if done + 1 < total else "")
        if done == 0 or self._beaten - self._passed > PASSING:
            self._passed = self._beaten
            if done:
                self.note(self.activity())

    def activity(self) -> str:
        """The current activity."""
        doing = ACTIVITIES.get(self.phases.current, "at work")
        return f"{doing}, {self.about['detail']}" if self.about["detail"] else doing

    def close(self, error: BaseException | None) -> None:
        """Ends the thread, writes a last status, unlocks the folder; `error` is what ended the run, if anything."""
        self._closed.set()
        self._thread.join()
        warnings.showwarning = self._warned
        if isinstance(error, Exception):
            self.note(f"ended by {type(error).__name__}: {error}")
        self._write_status("finished" if error is None else f"ended by {type(error).__name__}: {error}")
        if self._log is not None:
            self._log.close()
        if self._folder is not None:
            with contextlib.suppress(OSError):  # the last one's goes with the folder
                (self._folder / f"{self.process}").unlink()
                self._folder.rmdir()

    def silence(self) -> float:
        """Seconds since the last progress."""
        return time.perf_counter() - max(self._beaten, self.phases.since)

    def _watch(self) -> None:
        shown = 0.0  # the silence that a stack was shown for; the next is shown after twice as long
        while True:
            self._write_status(self.activity())
            self._write_beat()
            if self._closed.wait(BEAT):
                return
            silence = self.silence()
            if silence > max(self.stall, 2 * shown):
                shown = silence
                self._show_stack(silence)
            elif silence < self.stall:
                shown = 0.0
            if self._live and self.phases.current != "train":
                line = f"{self.activity()} ({time.perf_counter() - self.phases.since:.0f} s)"
                print(f"\r{line:<90}", end="", flush=True)

    def _show_stack(self, silence: float) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame)).rstrip() if frame else "(no frame)"
        where = f"process {self.process} of {jax.process_count()} on {socket.gethostname()}, {self.activity()}"
        lines = [f"{where}: no progress for {silence:.0f} s since step {self.about['step']}; it is at", stack]
        text = "\n".join([*lines, *self._behind()])
        print(f"warning: {text}", file=sys.stderr, flush=True)
        self.note(text)

    def _write_beat(self) -> None:
        if self._folder is not None:
            about = {"beats": self._beats, "where": f"on {socket.gethostname()}, step {self.about['step']}"}
            with contextlib.suppress(OSError):  # a full disk: no reason to stop
                self._folder.mkdir(exist_ok=True)
                write_text(self._folder / f"{self.process}", json.dumps(about))

    def _behind(self) -> list[str]:
        """The processes that are behind the others, and those without a record."""
        if self._folder is None:
            return []
        self._write_beat()
        found, times, lines = {}, {}, []
        for process in range(jax.process_count()):
            path = self._folder / f"{process}"
            with contextlib.suppress(OSError, ValueError):
                found[process], times[process] = json.loads(path.read_text()), path.stat().st_mtime
        now = times.get(self.process, 0.0)  # by the clock of the disk, which is one for all
        furthest = max((about["beats"] for about in found.values()), default=0)
        for process in range(jax.process_count()):
            if process not in found:
                lines.append(f"process {process} has recorded nothing")
            elif (silence := now - times[process]) > 3 * BEAT:
                lines.append(f"process {process} {found[process]['where']}, has recorded nothing for {silence:.0f} s")
            elif found[process]["beats"] < furthest:
                lines.append(f"process {process} {found[process]['where']}, is behind")
        return lines

    def _warn(self, message: Any, *args: Any, **kwargs: Any) -> None:
        self.note(f"warning: {message}")
        self._warned(message, *args, **kwargs)

    def _write_status(self, activity: str) -> None:
        if self._log is None:
            return
        about = {**self.about, "activity": activity, "silence": round(self.silence(), 1), "time": time.time()}
        about |= {"pid": os.getpid(), "host": socket.gethostname(), "processes": jax.process_count()}
        with contextlib.suppress(OSError):  # a full disk: no reason to stop
            write_text(self.workdir / "status.json", json.dumps(about) + "\n")


def footprint(workdir: pathlib.Path) -> tuple:
    """The settings and checkpoints of a folder, by which a run notices another one."""
    path = workdir / "config.json"
    settings = path.read_bytes() if path.is_file() else None
    return settings, sorted(step.name for step in workdir.glob("checkpoints/*"))


def _locked(workdir: pathlib.Path, found: tuple | None) -> Any:
    """train.log, open and locked; ZooError where another run has it, or had it since the footprint `found` was taken.
    Where the disk knows no locks, unlocked."""
    workdir.mkdir(parents=True, exist_ok=True)
    log, end = (workdir / "train.log").open("a"), time.monotonic() + PATIENCE
    try:
        while not _locks(log):
            if time.monotonic() > end:
                log.close()
                raise ZooError(f"another run is at work in {str(workdir)!r}; stop it first, or name another workdir")
            time.sleep(0.05)
    except OSError:
        warnings.warn(f"{str(workdir)!r} is on a file system without locks: start no second run in it", stacklevel=2)
    if found is not None and footprint(workdir) != found:
        log.close()
        raise ZooError(f"another run was at work in {str(workdir)!r} while this one began; start this one again")
    return log


def _locks(log: Any) -> bool:
    """Whether the lock is got."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lives(workdir: pathlib.Path) -> bool:
    """Whether a run is at work in the folder."""
    path = workdir / "train.log"
    if not path.is_file():  # to open a pipe would wait for whoever writes to it
        return False
    try:
        with path.open() as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
