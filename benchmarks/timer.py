"""Times contestants in turn (A B B A) on machines whose speed varies: medians, and ratios round by round."""

import contextlib
import csv
import ctypes
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError

RESULTS = pathlib.Path(__file__).parent / "results"  # of a checkout
if not RESULTS.is_dir():  # installed
    RESULTS = pathlib.Path("results")
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "keras")  # their versions are columns of every row
PROCESS = pathlib.Path("/proc/self")  # Linux's files about this process
ROLLUP, STATUS = PROCESS / "smaps_rollup", PROCESS / "status"
QUIET = 0.1  # cores that other processes may use; PyTorch slows down far more than XLA if they use more
TRIAL = 3  # rounds in which the fastest of several ways is chosen
SWING = 1.2  # ratio of the machine's speeds within a measurement above which the remark mentions it
NOMINAL_GFLOPS = 150.0  # the matrix-product rate at which a nominal minute is a wall minute


@dataclasses.dataclass(frozen=True)
class Contest:
    """Seconds per call of each contestant, one number per round, and the state of the machine meanwhile."""

    seconds: dict[str, list[float]]
    gflops: tuple[float, float, float]  # float32 matrix product before, halfway, after
    busy_others: float  # cores used by other processes, on average; nan where unknown

    def percentiles(self, name: str) -> tuple[float, float, float]:
        """10th percentile, median and 90th percentile of the seconds per call."""
        return percentiles_of(self.seconds[name])

    def ratio(self, name: str, other: str) -> tuple[float, float, float]:
        """10th percentile, median and 90th percentile of the ratio name / other, by round."""
        return percentiles_of(np.divide(self.seconds[name], self.seconds[other]))

    def machine(self) -> dict[str, Any]:
        """Columns of a row of results: the speed of the machine, and the cores used by other processes."""
        before, halfway, after = self.gflops
        rates = {"gflops_before": before, "gflops_halfway": halfway, "gflops_after": after}
        return {**rates, "busy_others": self.busy_others}

    def remark(self) -> str:
        """The state of the machine as text, with a warning if it was busy or its speed varied."""
        remark = f"{self.gflops[0]:.0f}, {self.gflops[1]:.0f}, {self.gflops[2]:.0f} GFLOP/s of matrix product"
        if self.busy_others > QUIET:
            remark += f"; other processes used {self.busy_others:.1f} cores: do not trust this measurement"
        elif max(self.gflops) > SWING * min(self.gflops):
            remark += "; the machine's speed varied by more than a fifth: trust only the ratios"
        return remark


def in_turn(contestants: Mapping[str, Callable[[], Any]], rounds: int, least: float = 0.2) -> Contest:
    """Times callables in turn: in every round one block of calls each, every other round in reverse order.

    A callable must block until its result is ready. A block lasts at least `least` seconds. The calls that find the
    size of a block are not counted, and neither is the first call of each block, which finds memory as the other
    contestants left it. ZooError for fewer than one round.
    """
    if rounds < 1:
        raise ZooError(f"rounds must be at least 1, not {rounds}")
    calls = {name: _calls(work, least) for name, work in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates, start, others = [matmul_gflops()], time.perf_counter(), _seconds_of_others()
    for i in range(rounds):
        if i == rounds // 2:
            rates.append(matmul_gflops())
        for name in list(contestants)[:: -1 if i % 2 else 1]:
            contestants[name]()
            seconds[name].append(_block(contestants[name], calls[name]) / calls[name])
    busy = (_seconds_of_others() - others) / (time.perf_counter() - start)
    before, halfway, after = *rates, matmul_gflops()
    return Contest(seconds, (before, halfway, after), float(np.maximum(busy, 0)))


def fastest(works: Mapping[str, Callable[[], Any]]) -> str:
    """The name of the callable with the smallest median over a few rounds."""
    if len(works) == 1:
        return next(iter(works))
    trial = in_turn(works, TRIAL)
    return min(works, key=lambda name: trial.percentiles(name)[1])


def _calls(work: Callable[[], Any], least: float) -> int:
    """Calls per block: doubled until a block lasts `least` seconds, after one warm-up call."""
    work()
    calls = 1
    while _block(work, calls) < least:
        calls *= 2
    return calls


def _block(work: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


def matmul_gflops(n: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of a float32 n x n matrix product: the fastest of those that fit into `seconds`."""
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


def nominal_minutes(seconds: float, rates: Sequence[float]) -> float:
    """`seconds` in minutes of a machine of NOMINAL_GFLOPS, by the median of this machine's `rates`."""
    return seconds / 60 * statistics.median(rates) / NOMINAL_GFLOPS


def taken_mb(work: Callable[[], Any]) -> float | None:
    """Peak memory of a call of `work` beyond what is held before it, in MB; None where unknown."""
    reset = PROCESS / "clear_refs"
    if jax.default_backend() != "cpu" or not reset.exists():
        return None
    with contextlib.suppress(AttributeError):  # glibc: return freed memory to the system
        ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # reset the peak to what is held now
    before = _status_mb("VmRSS")
    work()
    return _status_mb("VmHWM") - before


def _status_mb(name: str) -> float:
    return next(int(line.split()[1]) * 1.024e-3 for line in STATUS.read_text().splitlines() if line.startswith(name))


def large_pages_mb(work: Callable[[], Any]) -> float | None:
    """Peak memory in large pages during a call of `work`, in MB; None where unknown."""
    found, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            lines = ROLLUP.read_text().splitlines()
            found.extend(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("AnonHugePages"))
            over.wait(0.002)

    if not ROLLUP.is_file():
        return None
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(found)


def first_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds of a first call, compilation included."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def circumstances() -> dict[str, str]:
    """Columns of a row of results: date, machine, versions, commit and command."""
    row = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": f"{_processor()}, {cores()} cores, {platform.system()}, {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = ""
    commit = _git("rev-parse", "--short", "HEAD")
    dirty = "+" if _git("status", "--porcelain", "--untracked-files=no", ":(top,exclude)benchmarks/results") else ""
    return {
        **row,
        "commit": commit + dirty,
        "command": f"python -m benchmarks {shlex.join(_without_output(sys.argv[1:]))}",
    }


def _without_output(args: list[str]) -> list[str]:
    """The arguments without --output, which says nothing about the measurement."""
    if "--output" not in args:
        return [arg for arg in args if not arg.startswith("--output=")]
    place = args.index("--output")
    return args[:place] + args[place + 2 :]


def quiet(row: Mapping[str, Any]) -> bool:
    """Whether the machine was free of other work while a row was measured; True for rows without the column."""
    return float(row.get("busy_others") or 0) <= QUIET


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a CSV, with a header if the file is new; ZooError if the file has another header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or not path.stat().st_size
    if not new:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(row):
            raise ZooError(f"{str(path)!r} has other columns than this benchmark; name another file with --output")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: cell(value) for key, value in row.items()})


def cell(value: Any) -> str:
    """A value as text in a row; fields of a model as `name=value`."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}" if value == value else ""  # nan: no value
    return "" if value is None else str(value)


def percentiles_of(values: Any) -> tuple[float, float, float]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return float(low), float(median), float(high)


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_bytes(memory: Any) -> int:
    """Peak bytes of a compiled program per device: arguments, temporaries, and outputs that reuse no argument."""
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept


def torch_or_none() -> Any:
    """The module torch; None, with a printed line, if it is not installed or cannot use JAX's device."""
    try:
        import torch

        torch_device()
    except (ModuleNotFoundError, ZooError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "torch":
            raise
        print(f"torch is left out: {error} (pip install '.[benchmarks]')")
        return None
    return torch


def torch_device() -> str:
    """PyTorch's device, "cpu" or "cuda", the same as JAX's.

    PyTorch gets one thread per core of this process, and on a GPU TF32 for float32 products, which is JAX's default.
    ZooError if JAX has an accelerator that PyTorch cannot use.
    """
    import torch

    torch.set_num_threads(cores())
    platform = jax.default_backend()
    if platform == "cpu":
        return "cpu"
    if platform != "gpu" or not torch.cuda.is_available():
        raise ZooError(f"JAX runs on a {platform.upper()}, for which this PyTorch is not built")
    torch.set_float32_matmul_precision("high")
    return "cuda"


def synchronized(result: Any) -> Any:
    """`result` when it is ready: on a GPU a call returns before its work is done."""
    if result.is_cuda:
        import torch

        torch.cuda.synchronize()
    return result


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds_of_others() -> float:
    """Core-seconds used by other processes since boot, up to a constant; nan without /proc/stat."""
    try:
        line = pathlib.Path("/proc/stat").read_text().split("\n")[0]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _git(*args: str) -> str:
    try:
        done = subprocess.run(
            ["git", *args], capture_output=True, text=True, cwd=pathlib.Path(__file__).parent, check=False
        )
    except OSError:  # no git
        return ""
    return done.stdout.strip()
