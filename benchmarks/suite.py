"""The benchmarks that measure, by name."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

HOW = ("rounds", "seed", "peer", "peers")  # settings that say how something is measured, not what


class Command(NamedTuple):
    """A command of `python -m benchmarks`: the settings that its flags fill in, and the function that runs it."""

    config: type
    run: Callable[[Any], Any]


@functools.cache
def benchmarks() -> dict[str, Command]:
    """Every command that measures and appends rows to a file of results."""
    from benchmarks import (
        around,
        compiling,
        decoding,
        loop,
        membrane,
        onnx,
        quality,
        sampling,
        savings,
        serving,
        shakespeare,
        steps,
        tpu,
        translating,
        weights,
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
        "weights": Command(weights.WeightsConfig, weights.run),
        "checkpoint": Command(around.CheckpointConfig, around.run_checkpoint),
        "loop": Command(loop.LoopConfig, loop.run),
        "shakespeare": Command(shakespeare.ShakespeareConfig, shakespeare.run),
        "quality": Command(quality.QualityConfig, quality.run),
        "membrane": Command(membrane.MembraneConfig, membrane.run),
        "serving": Command(serving.ServingConfig, serving.run),
        "onnx": Command(onnx.OnnxConfig, onnx.run),
        "tpu": Command(tpu.TpuConfig, tpu.run),
    }
