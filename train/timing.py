"""Where the time of a run goes: seconds by phase, steps per second, profiler traces."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Phases:
    """Wall seconds by phase: `with phases("data"): ...`; the rest is `other`."""

    def __init__(self, seconds_before: float = 0.0):
        self.seconds: dict[str, float] = {"import": seconds_before} if seconds_before else {}
        self.begun = time.perf_counter() - seconds_before
        self.current, self.since = "other", self.begun  # the phase under way, and when it began

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
        total = time.perf_counter() - self.begun
        rows = {**self.seconds, "other": total - sum(self.seconds.values()), "total": total}
        return {name: round(value, 2) for name, value in rows.items()}


class Trace:
    """A profiler trace, in TensorBoard's format, of the steps from window[0] to window[1] - 1."""

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


class Clock:
    """Seconds, and steps per second, since it was made."""

    def __init__(self, step: int = 0):
        self.step, self.start = step, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def steps_per_second(self, step: int) -> float:
        return (step - self.step) / max(self.seconds(), 1e-9)
