"""The records of a run: metrics.jsonl, TensorBoard events, and Weights & Biases."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from train import processes
from zoo.errors import ZooError
from zoo.files import MOST_BYTES
from zoo.registry import fits

MOST_LINE = 2**16  # bytes
STOPPED = "stopped; earlier checkpoints are kept. A lower optimizer.learning-rate, an optimizer.clip-norm"


class Records:
    """The records of a run folder: `metrics.jsonl` has only what is deterministic, timings go to TensorBoard and to the
    project `wandb` of Weights & Biases.

    Of several processes the first one writes.
    """

    def __init__(
        self, workdir: pathlib.Path, tensorboard: bool, step: int, unevaluated: bool = False, wandb: str | None = None
    ):
        self.path = workdir / "metrics.jsonl"
        self._file: Any = None
        self._events: Any = None
        self._tracking: Any = None
        if not processes.first():
            return
        cut_back(self.path, step, unevaluated)
        self._file = self.path.open("a")
        if tensorboard:
            from train.events import Events

            self._events = Events(workdir / "tensorboard", step)
        if wandb is not None:
            from train.tracking import Tracking

            self._tracking = Tracking(wandb, workdir, json.loads((workdir / "config.json").read_text()))

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard and W&B."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._file.flush()
        self.events({f"{split}/{name}": value for name, value in metrics.items()}, step)

    def events(self, values: Mapping[str, float], step: int) -> None:
        """Scalars for TensorBoard and W&B only."""
        if self._events is not None:
            for name, value in values.items():
                self._events.add(name, value, step)
        if self._tracking is not None:
            self._tracking.log(values, step)

    @property
    def tracks(self) -> bool:
        """Whether pictures go anywhere."""
        return self._tracking is not None

    def pictures(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Pictures for W&B."""
        if self._tracking is not None:
            self._tracking.pictures(paths)

    def flush(self) -> None:
        """Syncs to the disk, which must happen before the checkpoint that builds on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self, error: BaseException | None = None) -> None:
        """Closes the files; `error` is what ended the run, if anything."""
        with contextlib.ExitStack() as closing:  # each, though the other finds the disk full
            if self._tracking is not None:
                closing.callback(self._tracking.close, failed=error is not None)
            for written in (self._file, self._events):
                if written is not None:
                    closing.callback(written.close)


def cut_back(path: pathlib.Path, step: int, unevaluated: bool) -> None:
    """Drops from metrics.jsonl what is after `step`, its evaluation if that is still to come, and partial lines."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as kept:
        for line, row in read_rows(path, last=None):
            if row["step"] < step or (row["step"] == step and not (unevaluated and row["split"] == "validation")):
                kept.write(line + "\n")
    os.replace(temporary, path)


def read_rows(path: pathlib.Path, last: int | None = MOST_BYTES) -> Iterator[tuple[str, dict[str, Any]]]:
    """The complete lines of metrics.jsonl, each with its parsed row: `step`, `split`, and numbers by name.

    Only the file's `last` bytes are read, and no line longer than MOST_LINE, which bounds the memory.
    """
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - last, 0) if last else 0)
        while content := file.readline(MOST_LINE):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                line = content.decode().rstrip("\n")
                row = json.loads(line)
                numbers = [value for name, value in row.items() if name != "split"]
                if isinstance(row["step"], int) and isinstance(row["split"], str) and fits(numbers, list[float]):
                    yield line, row


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class Interval:
    """Sums of metrics since the last log line. A checkpoint keeps them, so that a resumed run logs the same.

    `fetch` brings a step's metrics to the host; at most `bounded` steps are in flight.
    """

    def __init__(self, fetch: Callable[[Any], Any], bounded: int, step: int, stored: Mapping[str, Any]):
        self.fetch, self.bounded, self.step = fetch, bounded, step
        self.steps: int = stored["steps"]
        self.sums: dict[str, Any] = {}
        add_sums(self.sums, stored["sums"])
        self._unread: list[Any] = []

    def add(self, metrics: Any) -> None:
        """Keeps a step's metrics on the device, and waits where too many steps are in flight."""
        self._unread.append(metrics)
        if len(self._unread) >= self.bounded:
            jax.block_until_ready(self._unread[-self.bounded])

    def read(self) -> None:
        """Adds up all steps so far; ZooError at the first step whose loss or gradient is not finite."""
        for metrics in map(self.fetch, self._unread):
            self.step += 1
            self.steps += 1
            for name, value in metrics.items():
                if not np.all(np.isfinite(value)):
                    what = float(value) if np.ndim(value) == 0 else "not finite"
                    where = f"{name} is {what} at step {self.step}"
                    raise ZooError(f"{where}: {STOPPED} or optimizer.nonfinite skip may help")
            add_sums(self.sums, metrics)
        self._unread.clear()

    def skipped_all(self, least: int = 1) -> bool:
        """Whether there were `least` steps, and all were skipped."""
        return self.steps >= least and self.sums.get("skipped", 0.0) == self.steps

    def clear(self) -> None:
        self.steps, self.sums = 0, {}

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": {name: np.asarray(value).tolist() for name, value in self.sums.items()}}


def add_sums(totals: dict[str, Any], sums: Mapping[str, Any]) -> None:
    """Adds sums to totals, in float64: floats, and NumPy arrays where they have axes."""
    for name, value in sums.items():
        value = float(value) if np.ndim(value) == 0 else np.asarray(value, np.float64)
        totals[name] = totals.get(name, 0.0) + value


def numbers(sums: Any) -> bool:
    """Whether JSON data are sums as `Interval.to_json` gives them: finite numbers, or nested lists of one shape."""
    try:
        arrays = [np.array(value, np.float64) for value in sums.values() if not isinstance(value, bool | str)]
    except (AttributeError, TypeError, ValueError, OverflowError):
        return False
    return len(arrays) == len(sums) and all(np.all(np.isfinite(array)) for array in arrays)


class Judge(Protocol):
    """What may end a run at its evaluations, as a sweep does."""

    def add(self, step: int, score: float | None, last: bool) -> None:
        """Takes the score of an evaluation, None where it is not finite; `last` where the run is complete."""

    def ended(self, step: int) -> bool:
        """Whether the run is to end at this step."""


class Patience:
    """Early stopping: counts the evaluations since the best score. A checkpoint keeps the count."""

    def __init__(self, most: int | None, stored: Mapping[str, Any]):
        self.most, self.best, self.worse = most, stored["best"], stored["worse"]

    def add(self, score: float | None) -> None:
        """Takes the score of one more evaluation; None stands for one that is not finite."""
        if score is not None and (self.best is None or score > self.best):
            self.best, self.worse = score, 0
        else:
            self.worse += 1

    @property
    def ended(self) -> bool:
        return self.most is not None and self.worse >= self.most

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "worse": self.worse}


def shown(metrics: Mapping[str, float]) -> str:
    """Metrics in a line, with four decimals, or three significant digits where they are small; counts as they are."""

    def form(value: float) -> str:
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"

    return "  ".join(f"{name} {form(value)}" for name, value in metrics.items())
