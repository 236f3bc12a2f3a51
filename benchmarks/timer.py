"""Timing in turn, A B A B, on a machine whose speed swings: medians, ratios pair by pair, and how fast it was."""

import csv
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError

RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Contest:
    """Seconds a call of each contestant, one number a round, and the machine's rate in GFLOP/s beside them."""

    seconds: dict[str, list[float]]
    gflops: tuple[float, float, float]  # float32 matrix product before, halfway, after

    def percentiles(self, name: str) -> tuple[float, float, float]:
        """10th percentile, median and 90th percentile of the seconds a call."""
        return _percentiles(self.seconds[name])

    def ratio(self, name: str, other: str) -> tuple[float, float, float]:
        """The same of the ratio name / other, round by round."""
        return _percentiles(np.divide(self.seconds[name], self.seconds[other]))


def in_turn(contestants: Mapping[str, Callable[[], Any]], rounds: int, least: float = 0.2) -> Contest:
    """Times callables in turn, each round all of them, a block of calls each.

    A callable does its work to the end (it blocks until the result is there). The first call of each is not counted;
    then a block's calls are chosen so that it lasts at least `least` seconds.
    """
    calls = {}
    for name, work in contestants.items():
        work()
        start = time.perf_counter()
        work()
        calls[name] = max(1, round(least / max(time.perf_counter() - start, 1e-9)))
    rates, seconds = [matmul_gflops()], {name: [] for name in contestants}  # type: tuple[list[float], dict[str, list]]
    for i in range(rounds):
        if i == rounds // 2:
            rates.append(matmul_gflops())
        for name, work in contestants.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                work()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    before, halfway, after = *rates, matmul_gflops()
    return Contest(seconds, (before, halfway, after))


def matmul_gflops(n: int = 1024, seconds: float = 0.3) -> float:
    """The machine's rate at a float32 n x n matrix product: the best of the products done in `seconds`."""
    a = jax.numpy.ones((n, n), jax.numpy.float32)
    product = _product()
    product(a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


@functools.cache
def _product() -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda a: a @ a)


def timed_first_call(work: Callable[[], Any]) -> float:
    """Seconds of a first call: what compiling costs, with one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def circumstances() -> dict[str, str]:
    """Date, machine, versions, commit and command, for a row of results."""
    row = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "python": platform.python_version(),
    }
    for package in ("jax", "flax", "torch"):
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = ""
    commit = _git("rev-parse", "--short", "HEAD")
    dirty = "+" if _git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results") else ""
    words = [word if " " not in word else f"'{word}'" for word in sys.argv[1:]]
    return {**row, "commit": commit + dirty, "command": " ".join(["python -m benchmarks", *words])}


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a CSV, with its header where the file is new; ZooError where the file has another header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(row):
            raise ZooError(f"{str(path)!r} has other columns than this benchmark; name another file with --output")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


def _percentiles(values: Any) -> tuple[float, float, float]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return float(low), float(median), float(high)


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    return done.stdout.strip()
