"""Times a training step or a forward pass of any model beside its peers, in turn: one row each.

All start from the same weights, with the same batch (uint8 images or tokens) on the device. A step is forward, backward
and update; ours is the step of the training loop. A forward pass is that of evaluation, up to the logits. A peer must
have as many parameters as ours, and the same losses at step 0 and after one update. The ratio is our seconds over the
peer's, round by round. Of a peer with several memory layouts the fastest is timed. Compile time is that of tracing and
compiling ahead of time; for torch.compile it is the extra time of the first call.
"""

import dataclasses
import os
import pathlib
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

import zoo
from benchmarks.contestants import Contestant, Update, of_jax
from benchmarks.problems import Problem, make_problem
from benchmarks.step_peers import PEERS
from benchmarks.timer import PACKAGES, RESULTS, append_row, circumstances, fastest, in_turn, large_pages_mb, taken_mb
from train import memory
from train.optimizer import OptimizerConfig, make_optimizer
from train.settings import Arguments, at_least
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.tasks.task import Extra
from zoo.errors import ZooError, unknown
from zoo.registry import count_parameters

OURS = "flaxzoo"
TOLERANCES = {"at step 0": 1e-4, "after an update": 1e-3}  # of the loss at step 0; Adam magnifies rounding
HALF_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class ForwardConfig:
    """Times a forward pass of any model beside PyTorch, eager and compiled, transformers, Flax's layers and Keras."""

    model: Positional[str] = "simple_cnn"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model, e.g. stem=cifar dtype=bfloat16
    batch_size: int = 64  # examples
    size: int | None = None  # side of an image in pixels, or tokens per row; default: the model's
    peers: tuple[str, ...] = tuple(PEERS)  # timed beside ours, if installed and able to build the model
    rounds: int = 10  # rounds
    seed: int = 0  # of weights and data
    output: str = str(RESULTS / "forward.csv")  # the CSV to append to


@dataclasses.dataclass(frozen=True)
class TrainStepConfig(ForwardConfig):
    """Times a training step of any model beside PyTorch, eager and compiled, transformers, Flax's layers and Keras."""

    optimizer: Literal["adam", "sgd"] = "adam"  # at a constant learning rate
    learning_rate: float = 1e-3  # constant
    output: str = str(RESULTS / "step.csv")  # the CSV to append to


def run(config: ForwardConfig) -> list[dict[str, Any]]:
    """Measures, prints and appends a row for ours and each peer; returns them.

    ZooError if a peer computes something else, and for a value out of range.
    """
    at_least("rounds", config.rounds, 1)
    for name in config.peers:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
    problem = make_problem(config.model, config.args, config.batch_size, config.size, config.seed)
    update = Update(config.optimizer, config.learning_rate) if isinstance(config, TrainStepConfig) else None
    if update is not None:
        check_draws_nothing(problem)
    ours, flops = our_contestant(problem, update, config.seed)
    contestants = {OURS: ours}
    for name in config.peers:
        try:
            check_dtypes(problem)
            found = list(PEERS[name](problem, update))
        except (ModuleNotFoundError, ZooError) as error:
            if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in PACKAGES:
                raise
            print(f"{name} is left out: {error}", flush=True)
            continue
        for peer in found:
            check_same(ours, peer, name, problem.dtype)
        by_layout = {one.layout: one for one in found}
        contestants[name] = by_layout[fastest({layout: one.work for layout, one in by_layout.items()})]
    contest = in_turn({name: contestant.work for name, contestant in contestants.items()}, config.rounds)

    row: dict[str, Any] = {name: getattr(config, name) for name in ("model", "args", "batch_size", "size")}
    row |= update._asdict() if update is not None else {}
    hugetlb = "glibc.malloc.hugetlb" in os.environ.get(memory.VARIABLE, "")
    same = {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    kind = "forward" if update is None else "a training step"
    print(f"{config.model} batch {config.batch_size}, {kind}; {contest.remark()}")
    rows = []
    for name, one in contestants.items():
        own = row | {"framework": name, "layout": one.layout, "parameters": one.parameters}
        own["flops"] = flops if name == OURS else ""  # counted for ours only
        p10, median, p90 = (1e3 * seconds for seconds in contest.percentiles(name))
        own |= {"ms": median, "ms_p10": p10, "ms_p90": p90}
        low, ratio, high = contest.ratio(OURS, name) if name != OURS else ("", "", "")
        own |= {"ratio": ratio, "ratio_p10": low, "ratio_p90": high}
        own |= {"compile_seconds": one.compile_seconds}
        own |= {"temporary_mb": one.temporary_bytes / 1e6 if one.temporary_bytes else None}
        own |= {"taken_mb": taken_mb(one.work), "large_pages_mb": large_pages_mb(one.work), "hugetlb": hugetlb, **same}
        print(described(own), flush=True)
        rows.append(own)
    for own in rows:
        append_row(pathlib.Path(config.output), own)
    return rows


def our_contestant(problem: Problem, update: Update | None, seed: int) -> tuple[Contestant, int]:
    """Our contestant, and the FLOPs of the model and its gradient."""
    parameters = count_parameters(problem.variables)
    if update is not None:
        step, pure, state, batch = prepared(problem, update, seed)
        flops, rows = zoo.count_flops(pure, state, batch), len(problem.batch["row"])

        def again(state: Any) -> Any:
            """The state with a fresh carry, from which the peers start every step."""
            return dataclasses.replace(state, extra=Extra(problem.task.carry(problem.model, rows)))

        def read(sums: Any) -> float:
            return float(sums["loss"] / sums["count"])

        return of_jax(step, state, (batch,), problem, parameters, read, again), flops

    def forward(variables: Any, batch: Any) -> Any:
        args, kwargs = problem.inputs.arguments(batch)
        return problem.model.apply(variables, *args, **kwargs)

    batch = jax.device_put(problem.batch)
    flops = zoo.count_flops(forward, problem.variables, batch)
    return of_jax(jax.jit(forward), problem.variables, (batch,), problem, parameters), flops


def prepared(problem: Problem, update: Update, seed: int) -> tuple[Any, Any, Any, Any]:
    """The step of the loop, jitted and as a pure function, with its state and batch on the device."""
    rows, optimizer_config = len(problem.batch["row"]), OptimizerConfig(*update, schedule="constant")
    optimizer, layout = make_optimizer(optimizer_config, 1), make_layout("jit", rows, 1)
    extra = Extra(problem.task.carry(problem.model, rows))
    state = layout.put_state(init_state(problem.variables, optimizer, ema=False, extra=extra))
    pure = make_train_step(problem.task, problem.model, problem.inputs, optimizer, optimizer_config, seed)
    return layout.compile_train(pure, state), pure, state, layout.put_batch(problem.batch)


def check_draws_nothing(problem: Problem) -> None:
    """ZooError for a model with dropout, whose random numbers differ between frameworks."""
    rates = {name: 0.0 for name in type(problem.model).__dataclass_fields__ if name.endswith("_rate")}
    drawn = [f"{name}=0.0" for name in rates if getattr(problem.model, name)]
    if drawn:
        raise ZooError(f"steps are timed without dropout, but {problem.name} has it; give --args {' '.join(drawn)}")


def check_dtypes(problem: Problem) -> None:
    """ZooError for dtypes in which no peer computes."""
    parameters = np.dtype(problem.model.param_dtype).name
    if parameters != "float32" or problem.dtype not in ("float32", "bfloat16"):
        raise ZooError(
            f"peers need float32 parameters and float32 or bfloat16 computation, not {parameters} and {problem.dtype}"
        )


def check_same(ours: Contestant, peer: Contestant, name: str, dtype: str = "float32") -> None:
    """ZooError unless both have the same number of parameters and about the same losses.

    Losses agree within TOLERANCES relative to that at step 0, as an update can bring it near zero; in bfloat16, and on
    accelerators, which multiply float32 with less precision by default, within HALF_TOLERANCE.
    """
    if ours.parameters != peer.parameters:
        raise ZooError(f"not the same model: ours has {ours.parameters:,} parameters, {name}'s {peer.parameters:,}")
    exact = dtype == "float32" and jax.default_backend() == "cpu"
    for when, tolerance, mine, other in zip(TOLERANCES, TOLERANCES.values(), ours.losses, peer.losses, strict=True):
        if not abs(mine - other) <= (tolerance if exact else HALF_TOLERANCE) * abs(peer.losses[0]):
            raise ZooError(f"not the same computation: the loss {when} is {mine:.6f}, {name}'s {other:.6f}")


def described(row: dict[str, Any]) -> str:
    """A row as text."""
    text = f"    {row['framework'] + ' ' + row['layout']:<22} {row['ms']:9.2f} ms"
    if row["flops"]:
        text += f", {row['flops'] / row['ms'] / 1e6:4.0f} GFLOP/s"
    if row["compile_seconds"] is not None:
        text += f", compiled in {row['compile_seconds']:.1f} s"
    if row["taken_mb"] is not None:
        text += f", {row['taken_mb']:,.0f} MB peak memory"
    if row["ratio"] != "":
        text += f"; ratio {row['ratio']:.3f} ({row['ratio_p10']:.3f} to {row['ratio_p90']:.3f})"
    return text
