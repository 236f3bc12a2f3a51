"""Measures how much memory each way of saving it saves: a GPT's training step is compiled, not run, once for each.

Bytes are per device, from the compiler. The CPU compiler computes half precision in float32, and sums the gradients of
fsdp before it splits them, so both save less here than on a GPU or TPU.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, peak_bytes
from train.config import Config
from train.data.text import TextData
from train.optimizer import OptimizerConfig, make_optimizer
from train.settings import at_least
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.tasks.language_model import LanguageModel
from zoo.errors import ZooError
from zoo.inputs.text import TextInputs
from zoo.partition import rules_of

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class SavingsConfig:
    """Measures memory and FLOPs of a GPT's training step, plain and with each way of saving: dtype, remat, fsdp ..."""

    hidden_size: int = 512  # width
    num_layers: int = 8  # layers
    num_heads: int = 8  # heads of attention
    batch_size: int = 16  # rows, over all devices
    length: int = 256  # tokens per row
    vocab_size: int = 4096  # vocabulary
    output: str = str(RESULTS / "savings.csv")  # the CSV to append to


class Way(NamedTuple):
    """A way of saving memory: model fields, optimizer settings, a mesh, and whether the state is donated."""

    model: dict[str, Any] = {}  # noqa: RUF012 - never changed
    optimizer: dict[str, Any] = {}  # noqa: RUF012
    mesh: str | None = None
    donated: bool = True


WAYS: dict[str, Way] = {
    "plain": Way(),
    "not donated": Way(donated=False),
    "bfloat16": Way({"dtype": "bfloat16"}),
    "bfloat16 parameters": Way({"dtype": "bfloat16", "param_dtype": "bfloat16"}),
    "float16, scaled loss": Way({"dtype": "float16"}, {"loss_scale": 2.0**16, "nonfinite": "skip"}),
    "accumulate=4": Way(optimizer={"accumulate": 4}),
    "scan_layers": Way({"scan_layers": True}),
    "scan_layers, remat=dots": Way({"scan_layers": True, "remat": "dots"}),
    "scan_layers, remat=full": Way({"scan_layers": True, "remat": "full"}),
    **{
        mesh: Way(mesh=mesh)
        for mesh in ("data=8", "data=4,fsdp=2", "data=2,fsdp=4", "fsdp=8", "fsdp=4,tensor=2", "fsdp=4,context=2")
    },
    "fsdp=8, scan_layers, remat=full": Way({"scan_layers": True, "remat": "full"}, mesh="fsdp=8"),
}


def run(config: SavingsConfig) -> list[dict[str, Any]]:
    """Compiles, prints and appends a row for each way; returns them. `peak_share`: peak over the plain one."""
    for name in ("hidden_size", "num_layers", "num_heads", "batch_size", "length", "vocab_size"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    with_devices(DEVICES)
    rows: list[dict[str, Any]] = []
    for name, way in WAYS.items():
        row = {"way": name, **{k: v for k, v in dataclasses.asdict(config).items() if k != "output"}}
        row |= measured(config, way)
        row["peak_share"] = row["peak_mb"] / (rows[0]["peak_mb"] if rows else row["peak_mb"])
        print(
            f"{name:<32} state {row['state_mb']:6.1f} MB, temporaries {row['temporary_mb']:6.1f}, peak "
            f"{row['peak_mb']:6.1f} MB per device ({row['peak_share']:.2f}); {row['step_gflop']:.1f} GFLOP; "
            f"compiled in {row['compile_seconds']:.1f} s",
            flush=True,
        )
        rows.append({**row, **circumstances()})
        append_row(pathlib.Path(config.output), rows[-1])
    return rows


def with_devices(n: int) -> None:
    """Gives this process `n` virtual CPU devices; ZooError if JAX has started with fewer."""
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", n)
    if jax.device_count() < n:
        raise ZooError(f"savings needs {n} devices, JAX has {jax.device_count()}: run it in its own process on a CPU")


def measured(config: SavingsConfig, way: Way) -> dict[str, Any]:
    """Megabytes per device, total FLOPs and compile time of a step, from shapes alone."""
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_layers", "num_heads")}
    model = zoo.create_model("nanogpt", max_length=config.length, **{**sizes, **way.model})
    inputs = TextInputs("char", "".join(map(chr, range(config.vocab_size))), config.length)
    settings = OptimizerConfig("adamw", 1e-3, clip_norm=1.0, **way.optimizer)
    recipe = Config("", 1, config.batch_size, data=TextData(), task=LanguageModel(), optimizer=settings)
    optimizer = make_optimizer(settings, 1)
    layout = make_layout(
        "mesh" if way.mesh else "jit", config.batch_size, settings.accumulate, way.mesh, rules_of(model)
    )
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    ones = jax.ShapeDtypeStruct(tokens.shape, jnp.float32)
    names = {"tokens": tokens, "targets": tokens, "characters": ones, "weight": ones}
    batch = {**names, "row": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)}
    begin = functools.partial(init_state, optimizer=optimizer, ema=False, loss_scale=settings.loss_scale)
    state = jax.eval_shape(lambda tokens: begin(model.init(jax.random.key(0), tokens[:1, :2])), tokens)
    state = layout.template(state)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.split), batch)
    pure = make_train_step(recipe.task, model, inputs, optimizer, recipe.optimizer, recipe.seed)
    step: Any = layout.compile_train(pure, state) if way.donated else jax.jit(pure)
    start = time.perf_counter()
    memory = step.lower(state, placed).compile().memory_analysis()
    seconds = time.perf_counter() - start
    shards = jax.tree.map(lambda x: np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, state)
    return {
        "state_mb": sum(jax.tree.leaves(shards)) / 1e6,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "peak_mb": peak_bytes(memory) / 1e6,
        "step_gflop": zoo.count_flops(pure, state, placed) / 1e9,
        "compile_seconds": seconds,
    }
