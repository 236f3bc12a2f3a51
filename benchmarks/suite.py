"""The benchmarks by name, and the command that runs their cases."""

import dataclasses
import fnmatch
import functools
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tyro.conf import Positional

from zoo.errors import ZooError, unknown

HOW = ("rounds", "seed", "peer", "peers")  # settings that say how it is measured, not what


class Command(NamedTuple):
    """What the flags fill in, and what is done with them."""

    config: type
    run: Callable[[Any], Any]


@functools.cache
def benchmarks() -> dict[str, Command]:
    """Those that measure."""
    from benchmarks import (
        around,
        compiling,
        decoding,
        loop,
        quality,
        sampling,
        savings,
        shakespeare,
        steps,
        tpu,
        translating,
    )

    return {
        "train-step": Command(steps.TrainStepConfig, steps.run),
        "forward": Command(steps.ForwardConfig, steps.run),
        "decoding": Command(decoding.DecodingConfig, decoding.run),
        "translating": Command(translating.TranslatingConfig, translating.run),
        "compile": Command(compiling.CompileConfig, compiling.run),
        "memory": Command(compiling.MemoryConfig, compiling.run_memory),
        "savings": Command(savings.SavingsConfig, savings.run),
        "sampling": Command(sampling.SamplingConfig, sampling.run),
        "start": Command(around.StartConfig, around.run_start),
        "pipeline": Command(around.PipelineConfig, around.run_pipeline),
        "weights": Command(around.WeightsConfig, around.run_weights),
        "checkpoint": Command(around.CheckpointConfig, around.run_checkpoint),
        "loop": Command(loop.LoopConfig, loop.run),
        "shakespeare": Command(shakespeare.ShakespeareConfig, shakespeare.run),
        "quality": Command(quality.QualityConfig, quality.run),
        "tpu": Command(tpu.TpuConfig, tpu.run),
    }


@functools.cache
def commands() -> dict[str, Command]:
    """Those, and what is done with their results."""
    from benchmarks import compare, table

    return {
        **benchmarks(),
        "run": Command(RunConfig, run),
        "compare": Command(compare.CompareConfig, compare.run),
        "plot": Command(compare.PlotConfig, compare.plot),
        "readme": Command(table.ReadmeConfig, table.write),
    }


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Runs the cases that README quotes of one or several benchmarks, each in a process of its own."""

    names: Positional[tuple[str, ...]]  # benchmarks, or patterns of them: python -m benchmarks run '*'
    dry: bool = False  # print the commands alone


def run(config: RunConfig) -> None:
    """ZooError for a name that no benchmark with cases has, and at the end where cases failed."""
    from benchmarks import cases

    known = [name for name in benchmarks() if cases.of(name)]
    chosen: dict[str, None] = {}
    for pattern in config.names or ("",):
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise unknown("benchmark with cases", pattern, known)
        chosen |= dict.fromkeys(matching)
    found = [command for name in chosen for command in cases.of(name)]
    failed = []
    print(f"{len(found)} commands", flush=True)
    for command in found:
        print(f"python -m benchmarks {command}", flush=True)
        if not config.dry:
            done = subprocess.run([sys.executable, "-m", "benchmarks", *shlex.split(command)], check=False)
            failed += [command] if done.returncode else []
    if failed:
        raise ZooError(f"{len(failed)} failed: {'; '.join(failed)}")
