"""The records of a run: metrics.jsonl, TensorBoard events, seconds by phase, the learning curves."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from train import processes
from train.config import Config
from zoo.files import MOST_BYTES
from zoo.registry import fits

MOST_LINE = 2**16  # bytes


class Report:
    """The records of a run folder. `metrics.jsonl` holds what the settings determine; timings go to TensorBoard. Of
    several processes the first one writes."""

    def __init__(self, workdir: pathlib.Path, config: Config, step: int, unevaluated: bool = False):
        self.path = workdir / "metrics.jsonl"
        self._file: Any = None
        self._events: Any = None
        if not processes.first():
            return
        cut_back(self.path, step, unevaluated)
        self._file = self.path.open("a")
        if config.log.tensorboard:
            from train.events import Events

            self._events = Events(workdir / "tensorboard", step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._file.flush()
        for name, value in metrics.items():
            self.event(f"{split}/{name}", value, step)

    def event(self, name: str, value: float, step: int) -> None:
        """A scalar for TensorBoard alone."""
        if self._events is not None:
            self._events.add(name, value, step)

    def flush(self) -> None:
        """To the disk: what a checkpoint builds on must be there before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.ExitStack() as closing:  # each, though the other finds the disk full
            for written in (self._file, self._events):
                if written is not None:
                    closing.callback(written.close)


class Phases:
    """Wall seconds by phase: `with phases("data"): ...`; what is in no phase is `other`."""

    def __init__(self, seconds_before: float = 0.0):
        self.seconds: dict[str, float] = {"import": seconds_before} if seconds_before else {}
        self._start = time.perf_counter() - seconds_before
        self.current, self.since = "other", self._start  # the phase under way, and when it began

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.current, self.since = name, start
        try:
            yield
        finally:
            end = time.perf_counter()
            self.seconds[name] = self.seconds.get(name, 0.0) + end - start
            self.current, self.since = "other", end

    def summary(self) -> dict[str, float]:
        """Seconds by phase, rounded, with `other` and `total`."""
        total = time.perf_counter() - self._start
        rows = {**self.seconds, "other": total - sum(self.seconds.values()), "total": total}
        return {name: round(value, 2) for name, value in rows.items()}


class Trace:
    """A profiler's trace of the steps from the first to before the second of `window`, in TensorBoard's format."""

    def __init__(self, window: tuple[int, int] | None, folder: pathlib.Path):
        self.window, self.folder, self.on = window, folder, False

    def before(self, step: int) -> None:
        if self.window and step == self.window[0]:
            jax.profiler.start_trace(str(self.folder))
            self.on = True

    def after(self, step: int, metrics: Any) -> None:
        if self.on and self.window and step == self.window[1]:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self.on = False


def cut_back(path: pathlib.Path, step: int, unevaluated: bool) -> None:
    """Drops the lines of metrics.jsonl beyond `step`, those of its evaluation if that is to come, and half a line."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as kept:
        for line, row in read_rows(path, last=None):
            if row["step"] < step or (row["step"] == step and not (unevaluated and row["split"] == "validation")):
                kept.write(line + "\n")
    os.replace(temporary, path)


def read_rows(path: pathlib.Path, last: int | None = MOST_BYTES) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl that are whole, and what they say: `step`, `split`, and numbers by name.

    Only of the file's `last` bytes, since whoever keeps the rows has them all in memory. None longer than MOST_LINE.
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
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def draw_curves(workdir: pathlib.Path, metric: str, path: pathlib.Path | None = None) -> pathlib.Path:
    """A picture, curves.png by default: loss and the task's metric by step, a line a split."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in read_rows(workdir / "metrics.jsonl")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", metric), strict=True):
        for split in dict.fromkeys(row["split"] for row in rows):
            points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
            marker = "o" if len(points) == 1 else None
            if points:
                axis.plot(*zip(*points, strict=True), label=f"{split} {points[-1][1]:.4f}", marker=marker)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend(title="last value")
    if min((row.get("loss", 0) for row in rows), default=0) > 0:
        axes[0].set_yscale("log")
    path = path or workdir / "curves.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
