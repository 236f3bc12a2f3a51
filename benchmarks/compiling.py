"""Compiles a GPT's training step without running it: compile time by depth, memory by context."""

import dataclasses
import pathlib
import time
from typing import Any

from benchmarks.contestants import Update
from benchmarks.problems import make_problem
from benchmarks.steps import TrainStepConfig, prepared
from benchmarks.timer import RESULTS, append_row, circumstances, matmul_gflops
from train.settings import at_least


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """Times tracing and compiling of a GPT's training step by depth, with layers looped and scanned."""

    depths: tuple[int, ...] = (12, 48)  # numbers of layers
    hidden_size: int = 64  # width
    num_heads: int = 4  # heads of attention
    batch_size: int = 12  # rows
    length: int = 64  # tokens per row
    vocab_size: int = 65  # vocabulary
    seed: int = 0  # of weights and tokens
    output: str = str(RESULTS / "compile.csv")  # the CSV to append to


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Measures the temporary memory of a GPT's training step by context, with full and with blocked attention."""

    lengths: tuple[int, ...] = (1024, 4096)  # tokens per row
    hidden_size: int = 128  # width
    num_layers: int = 4  # layers
    num_heads: int = 4  # heads of attention
    batch_size: int = 1  # rows
    vocab_size: int = 65  # vocabulary
    seed: int = 0  # of weights and tokens
    output: str = str(RESULTS / "memory.csv")  # the CSV to append to


def run(config: CompileConfig) -> list[dict[str, Any]]:
    """Compiles, prints and appends a row for each depth, looped and scanned; returns them.

    Seconds are those of the first compilation in this process, without the compilation cache.
    """
    _check(config, config.depths, "depths")
    _compiled(config, config.length, num_layers=1)  # the compiler's own start-up
    rows = []
    for depth in config.depths:
        for scan in (False, True):
            before, others = matmul_gflops(), {"num_layers": depth, "scan_layers": scan}
            trace, compiling, memory = _compiled(config, config.length, **others)
            row: dict[str, Any] = {**others, **_sizes(config), "length": config.length}
            row |= {"trace_seconds": trace, "compile_seconds": compiling, "temporary_mb": memory / 1e6}
            row |= {"gflops_before": before, "gflops_after": matmul_gflops(), "seed": config.seed, **circumstances()}
            print(
                f"GPT {depth}x{config.hidden_size} {'scanned' if scan else 'looped'}: traced in {trace:.1f} s, "
                f"compiled in {compiling:.1f} s; {before:.0f}, {row['gflops_after']:.0f} GFLOP/s of matrix product"
            )
            append_row(pathlib.Path(config.output), row)
            rows.append(row)
    return rows


def run_memory(config: MemoryConfig) -> list[dict[str, Any]]:
    """Compiles, prints and appends a row for each length and implementation of attention; returns them.

    `growth` is the memory over that of the shortest length.
    """
    _check(config, config.lengths, "lengths")
    rows: list[dict[str, Any]] = []
    rate = matmul_gflops()
    for attention in ("xla", "blocked"):
        fields = {"attention": attention, "num_layers": config.num_layers}
        found = [_compiled(config, length, **fields)[2] for length in sorted(config.lengths)]
        for length, memory in zip(sorted(config.lengths), found, strict=True):
            row = {**fields, **_sizes(config), "length": length, "temporary_mb": memory / 1e6}
            row |= {"growth": memory / found[0], "gflops": rate, "seed": config.seed, **circumstances()}
            append_row(pathlib.Path(config.output), row)
            rows.append(row)
        shown = ", ".join(f"{row['temporary_mb']:.0f} MB at {row['length']:,}" for row in rows[-len(found) :])
        longest = max(config.lengths) / min(config.lengths)
        print(
            f"GPT {config.num_layers}x{config.hidden_size} batch {config.batch_size}, attention {attention}: {shown}; "
            f"{rows[-1]['growth']:.1f} times the memory for {longest:.3g} times the length"
        )
    return rows


def _check(config: Any, many: tuple[int, ...], name: str) -> None:
    at_least(f"the number of {name}", len(many), 1)
    at_least(name, min(many), 1)
    for field in ("hidden_size", "num_heads", "batch_size", "vocab_size"):
        at_least(field.replace("_", "-"), getattr(config, field), 1)


def _sizes(config: Any) -> dict[str, int]:
    return {name: getattr(config, name) for name in ("hidden_size", "num_heads", "batch_size", "vocab_size")}


def _compiled(config: Any, length: int, **fields: Any) -> tuple[float, float, int]:
    """Seconds of tracing, seconds of compiling and temporary bytes of the step of a model with `fields`."""
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_heads")}
    args = {"max_length": length, **sizes, **fields}
    problem = make_problem("nanogpt", args, config.batch_size, length, config.seed)
    step, _, state, batch = prepared(problem, Update("adam", TrainStepConfig.learning_rate), config.seed)
    start = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return traced - start, time.perf_counter() - traced, compiled.memory_analysis().temp_size_in_bytes
