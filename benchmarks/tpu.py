"""Compiles the training steps of recipes for TPUs, without a TPU: memory, and a lower bound of the time.

The step is the trainer's, with its shapes, mesh and donated state; the compiler is the TPU's own (libtpu, which needs
no TPU). Its statement of memory is exact. The time is the roofline, a lower bound: the longest of what computation,
memory and interconnect need at published rates. FLOPs are those of the jaxpr, divided by the chips. Bytes moved
are estimated from the compiled text (see benchmarks.hlo). An all-reduce is assumed to use all links of a chip at once,
although a small slice lacks some of them.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

import zoo
from benchmarks.flax_layers import flax_model
from benchmarks.hlo import Traffic, traffic
from benchmarks.timer import RESULTS, append_row, circumstances, peak_bytes
from train.config import Config
from train.data.images import ImageData
from train.data.pairs import PairData
from train.data.streams import Stream
from train.mesh import mesh_sizes
from train.optimizer import make_optimizer
from train.recipes import load_recipe
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.tasks.task import Extra
from zoo.errors import ZooError, unknown
from zoo.inputs.image import ImageInputs
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs
from zoo.partition import DATA, FSDP, rules_of
from zoo.registry import abstract_variables, count_parameters


class Chip(NamedTuple):
    """A chip's published rates per second, and its memory."""

    flops: float  # in bfloat16, by default also for float32 products
    bytes: float  # to and from its memory
    sent: float  # bytes over all of its links, one way
    memory: float  # bytes


CHIPS = {  # cloud.google.com/tpu/docs/v5e, v5p and v6e
    "v5e": Chip(197e12, 819e9, 200e9, 16e9),
    "v5p": Chip(459e12, 2765e9, 600e9, 95e9),
    "v6e": Chip(918e12, 1638e9, 400e9, 32e9),
}
# What would follow from a recipe's data: classes, vocabulary, tokens of sources and targets in a batch.
SIZES: dict[str, dict[str, int]] = {
    "imagenet-resnet50": {"classes": 1000},
    "lstm": {"symbols": 96},
    "multi30k-gru": {"symbols": 5000, "source": 32, "target": 32},
    "gpt2-medium": {"symbols": 50_304},
}
CHECKS = 3  # compilations that search for the largest batch, after the first two
STEP_BACK = 0.95  # factor on a predicted batch that did not fit


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """Compiles the steps of recipes for a TPU, without one: memory, FLOPs, collectives, roofline, largest batch."""

    topology: str = "v5e:2x4"  # chip and slice, e.g. v5e:4x4 or v5p:2x2x2
    mesh: str | None = None  # axes of the mesh, e.g. data=4,fsdp=4; default: data over all chips
    recipe: tuple[str, ...] = tuple(SIZES)  # recipes; by default one of each family
    peer: bool = True  # also the model of Flax's own layers
    largest: bool = True  # search for the largest batch that fits the memory
    output: str = str(RESULTS / "tpu.csv")  # the CSV to append to


class Compiled(NamedTuple):
    """A compiled step, per chip. If it did not fit, bytes are `inf` and the rest is empty."""

    batch_size: int
    arguments: float = float("inf")
    temporaries: float = float("inf")
    peak: float = float("inf")  # arguments, temporaries, and outputs that reuse no argument
    flops: float = 0.0
    traffic: Traffic = Traffic()
    core_seconds: float = 0.0  # CPU time of tracing and compiling, all threads


def run(config: TpuConfig) -> list[dict[str, Any]]:
    """Compiles, prints and appends a row for each recipe and model; returns them. ZooError without libtpu."""
    for name in config.recipe:
        if name not in SIZES:
            raise unknown("recipe for TPUs", name, SIZES)
    chip, devices = chips(config.topology)
    axes = {axis: size for axis, size in mesh_sizes(config.mesh, len(devices)).items() if size > 1}
    mesh = ",".join(f"{axis}={size}" for axis, size in axes.items())
    rows = []
    for name in config.recipe:
        settings = dataclasses.replace(load_recipe(name).config(), parallel="mesh", mesh=config.mesh)
        settings.check()
        inputs, example = stand_in(settings, **SIZES[name])
        ours = zoo.create_model(settings.model.name, **{**settings.model.args, **inputs.model_args()})
        models = {"flaxzoo": ours, "flax.linen": flax_model(ours) if config.peer else None}
        counts: dict[str, int] = {}
        for framework, model in models.items():
            if model is None:
                continue
            counts[framework] = count_parameters(abstract_variables(model, *inputs.example()))
            if len(set(counts.values())) > 1:
                raise ZooError(f"{name}: the models differ in their parameters: {counts}")
            row: dict[str, Any] = {"recipe": name, "framework": framework, "topology": config.topology}
            row |= {"chips": len(devices), "mesh": mesh, "parameters": counts[framework]}
            step = Step(settings, model, inputs, example, devices)
            rows.append({**row, **measured(step, chip, config.largest), **circumstances()})
            append_row(pathlib.Path(config.output), rows[-1])
            print(described(rows[-1]), flush=True)
    return rows


def chips(topology: str) -> tuple[Chip, list[Any]]:
    """The rates of a chip and the described devices of a slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise ZooError("compiling for TPUs needs libtpu, not a TPU: pip install '.[tpu]'")
    from jax.experimental import topologies

    kind = topology.split(":")[0]
    if kind not in CHIPS:
        raise unknown("chip", kind, CHIPS)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise it queries the network
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    jax.config.update("jax_platforms", "cpu")  # leave a real TPU alone
    try:
        return CHIPS[kind], list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ZooError(f"no topology {topology!r}: {str(error).splitlines()[0]}") from None


def stand_in(settings: Config, **sizes: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Inputs and a batch of one with the sizes of a recipe's data."""
    ones = {"row": np.zeros(1, np.int32), "weight": np.ones(1, np.float32)}
    symbols = "".join(map(chr, range(sizes.get("symbols", 0))))
    if isinstance(settings.data, ImageData):
        shape: Any = zoo.model_info(settings.model.name).input_shape
        inputs: Any = ImageInputs(shape, (0.5,) * 3, (0.25,) * 3, tuple(map(str, range(sizes["classes"]))))
        return inputs, {"image": np.zeros((1, *shape), np.uint8), "label": np.zeros(1, np.int32), **ones}
    if isinstance(settings.data, PairData):
        source = TextInputs("char", symbols, sizes["source"])
        target = TextInputs("char", symbols[::-1], sizes["target"])  # a separate vocabulary
        batch = {side: np.zeros((1, sizes[side]), np.int32) for side in ("source", "target")}
        lengths = {name: np.ones(1, np.int32) for name in ("source_length", "length")}
        return PairInputs(source, target), {**batch, **lengths, **ones}
    text: Any = settings.data
    inputs = TextInputs("char", symbols, text.context)
    documents = (np.zeros(1, int),) if text.packed else ()
    stream = Stream(np.zeros(2, np.int32), text.context, np.ones(2, np.uint8), *documents)
    return inputs, {**stream.read(np.zeros(1, int)), "row": ones["row"]}


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step of a recipe and a model, to be compiled for devices."""

    settings: Config
    model: Any
    inputs: Any
    example: dict[str, np.ndarray]
    devices: list[Any]

    @property
    def least(self) -> int:
        """The number of which every batch size must be a multiple."""
        sizes = mesh_sizes(self.settings.mesh, len(self.devices))
        return sizes[DATA] * sizes[FSDP] * self.settings.optimizer.accumulate

    def compile(self, batch_size: int) -> Compiled:
        """The step for `batch_size` examples, compiled as by the trainer."""
        settings = dataclasses.replace(self.settings, batch_size=batch_size)
        start = time.process_time()
        with as_if_on(self.devices):
            step, state, batch = self.abstract(settings)
            flops = zoo.count_flops(step, state, batch)
            lowered = step.trace(state, batch).lower(lowering_platforms=("tpu",))
        # libtpu's as_text() fails on gathers on a v5p's SparseCores; the dumped text is complete.
        with tempfile.TemporaryDirectory() as folder:
            try:
                program = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            except jax.errors.JaxRuntimeError as error:
                if "Ran out of memory" not in str(error):
                    raise
                return Compiled(batch_size, flops=flops / len(self.devices), core_seconds=time.process_time() - start)
            seconds, memory = time.process_time() - start, program.memory_analysis()
            text = next(pathlib.Path(folder).glob("*after_codegen.txt")).read_text()
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, peak_bytes(memory)
        return Compiled(batch_size, *sizes, flops / len(self.devices), traffic(text), seconds)

    def abstract(self, settings: Config) -> tuple[Any, Any, Any]:
        """The step, and the shapes of its state and batch with their shardings."""
        optimizer = make_optimizer(settings.optimizer, settings.steps)
        micro, rules = settings.optimizer.accumulate, rules_of(self.model)
        layout = make_layout("mesh", settings.batch_size, micro, settings.mesh, rules)
        variables = abstract_variables(self.model, *self.inputs.example())
        ema = settings.optimizer.ema is not None
        carry = settings.task.carry
        state = jax.eval_shape(
            lambda v: init_state(v, optimizer, ema, Extra(carry(self.model, settings.batch_size))), variables
        )
        placed = jax.tree.map(_placed, state, layout.shardings(state))
        rows = {
            name: jax.ShapeDtypeStruct((settings.batch_size, *array.shape[1:]), array.dtype)
            for name, array in self.example.items()
        }
        step = layout.compile_train(
            make_train_step(settings.task, self.model, self.inputs, optimizer, settings.optimizer, settings.seed), state
        )
        return step, placed, _placed(rows, layout.split)


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def as_if_on(devices: list[Any]) -> contextlib.AbstractContextManager[Any]:
    """Inside, JAX reports these devices, to the layout and to ops with code for a platform."""
    answers: dict[str, Any] = {
        "devices": lambda *_: devices,
        "device_count": lambda *_: len(devices),
        "default_backend": lambda: devices[0].platform,
    }
    return mock.patch.multiple(jax, **answers)


def measured(step: Step, chip: Chip, search: bool) -> dict[str, Any]:
    """The columns of a step at the recipe's batch size, and its largest batch."""
    done = step.compile(step.settings.batch_size)
    times = {"compute": done.flops / chip.flops}
    times |= {"memory": done.traffic.bytes / chip.bytes, "interconnect": done.traffic.sent / chip.sent}
    bound = max(times, key=lambda name: times[name])
    fits = done.peak <= chip.memory
    row: dict[str, Any] = {"batch_size": done.batch_size, "fits": fits}
    row |= {f"{name}_mb": getattr(done, name) / 1e6 for name in ("arguments", "temporaries", "peak")}
    row |= {"gflop": done.flops / 1e9, "moved_mb": done.traffic.bytes / 1e6, "sent_mb": done.traffic.sent / 1e6}
    kinds = done.traffic.payload.items()
    row["collectives"] = ", ".join(f"{done.traffic.collectives[k]} {k} {n / 1e6:.4g} MB" for k, n in kinds)
    row |= {f"{name}_ms": 1e3 * seconds for name, seconds in times.items()}
    row |= {"roofline_ms": 1e3 * times[bound], "bound": bound, "unknown_loops": done.traffic.unknown_loops}
    best = largest(step.compile, done, step.least, chip.memory) if search else None
    row |= {"largest_batch": best.batch_size if best else "", "largest_peak_mb": best.peak / 1e6 if best else ""}
    return {**row, "compile_core_s": done.core_seconds, "libtpu": importlib.metadata.version("libtpu")}


def largest(compile_at: Callable[[int], Compiled], first: Compiled, least: int, memory: float) -> Compiled | None:
    """The compiled step of the largest batch found to fit, a multiple of `least`; None if none fits.

    A line through the peak memory of the first batch, halved until it fits, and of one of about half the memory
    predicts the largest. That batch is compiled too, and after a wrong prediction those of improved lines.
    """

    def whole(batch_size: float) -> int:
        return max(int(batch_size // least), 1) * least

    while first.peak > memory and first.batch_size > least:
        first = compile_at(whole(first.batch_size / 2))
    if first.peak > memory:
        return None
    half = whole(first.batch_size * memory / 2 / first.peak)
    points = [first, compile_at(half if half != first.batch_size else half + least)]
    for _ in range(CHECKS):
        fitting = sorted((point for point in points if point.peak <= memory), key=lambda point: point.batch_size)
        low, high = fitting[-2:] if len(fitting) > 1 else (first, first)
        slope = (high.peak - low.peak) / max(high.batch_size - low.batch_size, 1)
        guess = whole(high.batch_size + (memory - high.peak) / slope) if slope > 0 else 2 * high.batch_size
        too_large = [point.batch_size for point in points if point.peak > memory]
        guess = min([guess, *(whole(STEP_BACK * size) for size in too_large)])
        if guess <= high.batch_size:
            break
        points.append(compile_at(guess))
        if 0.97 * memory < points[-1].peak <= memory:
            break
    return max((point for point in points if point.peak <= memory), key=lambda point: point.batch_size)


def described(row: dict[str, Any]) -> str:
    """A row as text."""
    peak = f"{row['peak_mb']:,.0f} MB per chip" + ("" if row["fits"] else ", too much")
    largest = f", {row['largest_batch']:,} the largest that fits" if row["largest_batch"] else ""
    return (
        f"{row['recipe']} {row['framework']} on {row['topology']} {row['mesh']}, batch {row['batch_size']:,}: {peak} "
        f"({row['arguments_mb']:,.0f} arguments, {row['temporaries_mb']:,.0f} temporaries){largest}\n"
        f"    {row['gflop']:,.1f} GFLOP, {row['moved_mb']:,.0f} MB moved, sent {row['sent_mb']:,.1f} MB: "
        f"{row['collectives'] or 'nothing'}\n"
        f"    at least {row['roofline_ms']:.3g} ms by {row['bound']} (compute {row['compute_ms']:.3g}, memory "
        f"{row['memory_ms']:.3g}, interconnect {row['interconnect_ms']:.3g}); {row['compile_core_s']:.0f} core-seconds "
        "to compile"
    )
