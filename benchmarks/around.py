"""Times what a run does outside of its steps: starting, reading batches, saving and restoring."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, fastest, in_turn, percentiles_of, torch_or_none
from train.checkpoint import Checkpoints
from train.data.source import ArraySplit
from train.first_weights import load_data
from train.optimizer import OptimizerConfig, make_optimizer
from train.recipes import load_recipe
from train.settings import Arguments, at_least
from train.step import init_state
from zoo.errors import ZooError
from zoo.registry import abstract_variables

IMPORTS = """
import time
start = time.perf_counter()
import jax, flax
between = time.perf_counter()
import zoo
print(between - start, time.perf_counter() - between)
"""


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Times imports in fresh processes, and a run of a recipe without and with the compilation cache."""

    recipe: str = "cnn"  # a recipe: python -m train list
    steps: int = 60  # of the run; enough to reach a steady rate
    rounds: int = 5  # importing processes, and pairs of runs
    output: str = str(RESULTS / "start.csv")  # the CSV to append to


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Times the training batches of a recipe beside PyTorch's DataLoader over the same arrays."""

    recipe: Positional[str] = "cifar10"  # a recipe: python -m train list
    workers: tuple[int, ...] = (0, 2)  # numbers of DataLoader processes; the fastest is timed
    rounds: int = 10  # rounds
    output: str = str(RESULTS / "pipeline.csv")  # the CSV to append to


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Times saving and restoring a model and Adam's state, with digests, beside torch.save and torch.load."""

    model: Positional[str] = "resnet50"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model
    rounds: int = 5  # rounds
    output: str = str(RESULTS / "checkpoint.csv")  # the CSV to append to


def finish(config: Any, row: dict[str, Any], works: dict[str, Callable[[], Any]], amount: float, unit: str) -> Any:
    """Times `works` in turn, each call of which processes `amount`; adds the rates, prints and appends the row."""
    contest = in_turn(works, config.rounds)
    for name in works:
        fast, median, slow = (amount / seconds for seconds in contest.percentiles(name))
        row |= {f"{name}_{unit}_per_s": median, f"{name}_p10": slow, f"{name}_p90": fast}
    row |= {**contest.machine(), "rounds": config.rounds, **circumstances()}
    shown = ", ".join(f"{name.replace('_', ' ')} {row[f'{name}_{unit}_per_s']:,.4g} {unit}/s" for name in works)
    print(f"{getattr(config, 'model', None) or config.recipe}: {shown}; {contest.remark()}")
    append_row(pathlib.Path(config.output), row)
    return row


def run_start(config: StartConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. Seconds are medians; those of runs are of whole processes."""
    at_least("rounds", config.rounds, 1)
    load_recipe(config.recipe)
    imports = np.array([_python("-c", IMPORTS)[0].split() for _ in range(config.rounds)], float)
    found: dict[str, list[float]] = {}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as place:
            for name in ("first", "second"):
                flags = ["--steps", str(config.steps), "--workdir", f"{place}/{name}"]
                seconds = _python("-m", "train", config.recipe, *flags, cache=f"{place}/cache")[1]
                phases = json.loads(pathlib.Path(place, name, "result.json").read_text())["seconds"]
                found.setdefault(name, []).append(seconds)
                found.setdefault(f"{name}_compile", []).append(phases["compile"])
    row: dict[str, Any] = {"recipe": config.recipe, "steps": config.steps}
    for name, values in {"import_jax_flax": imports[:, 0], "import_zoo": imports[:, 1], **found}.items():
        p10, median, p90 = percentiles_of(values)
        row |= {f"{name}_seconds": median, f"{name}_p10_seconds": p10, f"{name}_p90_seconds": p90}
    row |= {"rounds": config.rounds, **circumstances()}
    print(
        f"import jax, flax {row['import_jax_flax_seconds']:.2f} s, zoo {row['import_zoo_seconds']:.3f} s more; "
        f"{config.recipe} {row['first_seconds']:.1f} s ({row['first_compile_seconds']:.1f} in the first step), with "
        f"the compilation cache {row['second_seconds']:.1f} s ({row['second_compile_seconds']:.1f})"
    )
    append_row(pathlib.Path(config.output), row)
    return row


def _python(*args: str, cache: str = "") -> tuple[str, float]:
    """The output of a Python process and its seconds; ZooError if it fails."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *args], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"python {' '.join(args[:3])} failed"]
        raise ZooError(lines[-1].removeprefix("error: "))
    return done.stdout, time.perf_counter() - start


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. Our texts are padded per batch, the peer's per set."""
    settings = load_recipe(config.recipe).config()
    start = time.perf_counter()
    dataset = load_data(settings, None)
    loaded = time.perf_counter() - start
    coming = dataset.train.batches(settings.batch_size, settings.seed).from_step(0, 10**9)
    first = next(coming)
    works: dict[str, Callable[[], Any]] = {"ours": lambda: next(coming)}
    if isinstance(dataset.train, ArraySplit):
        works |= _loader(config, dataset.train, settings.batch_size)
    row = {"recipe": config.recipe, "data": dataset.name, "batch_size": settings.batch_size, "load_seconds": loaded}
    row["batch_mb"] = sum(array.nbytes for array in first.values()) / 1e6
    for name in ("ours", "torch"):
        row |= {f"{name}_{column}": "" for column in ("batches_per_s", "p10", "p90")}
    return finish(config, row, works, 1, "batches")


def _loader(config: PipelineConfig, split: ArraySplit, batch_size: int) -> dict[str, Callable[[], Any]]:
    """PyTorch's DataLoader with its fastest number of processes; {} without torch, ZooError if its batches differ."""
    torch = torch_or_none()
    if torch is None:
        return {}
    from torch.utils.data import DataLoader

    from benchmarks.torch_rows import Rows, as_it_is

    rows: Any = Rows({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in split.arrays.items()})
    options: dict[str, Any] = {"shuffle": True, "drop_last": True, "collate_fn": as_it_is}
    ours = {name: (array.shape, str(array.dtype)) for name, array in split.read(np.arange(batch_size)).items()}
    works: dict[str, Callable[[], Any]] = {}
    for workers in config.workers:
        more: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
        loader: Any = DataLoader(rows, batch_size, num_workers=workers, **options, **more)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        theirs = {name: (tuple(leaf.shape), str(leaf.numpy().dtype)) for name, leaf in next(batches).items()}
        if theirs != ours:
            raise ZooError(f"not the same batches: ours are {ours}, PyTorch's {theirs}")
        works[str(workers)] = functools.partial(next, batches)
    return {"torch": works[fastest(works)]}


def drawn(name: str, args: dict[str, Any]) -> tuple[Any, Any, tuple[int, ...]]:
    """A model, random variables of its shapes drawn on the host, and the shape of an example."""
    model, info = zoo.create_model(name, **args), zoo.model_info(name)
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, *info.example())
    return model, jax.tree.map(lambda x: rng.random(x.shape, np.float32).astype(x.dtype), shapes), info.input_shape


def size_mb(tree: Any) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


def run_checkpoint(config: CheckpointConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. A save ends when everything is on disk."""
    _, variables, _ = drawn(config.model, config.args)
    state = init_state(variables, make_optimizer(OptimizerConfig("adam", 1e-3, schedule="constant"), 1), ema=False)
    state = jax.tree.map(np.asarray, state)
    row: dict[str, Any] = {"model": config.model, "args": config.args, "state_mb": size_mb(state)}
    names = [f"{way}_{verb}" for way in ("ours", "torch") for verb in ("save", "restore")]
    row |= {f"{name}_{column}": "" for name in names for column in ("mb_per_s", "p10", "p90")}
    steps = itertools.count()
    with tempfile.TemporaryDirectory() as place:
        checkpoints = Checkpoints(pathlib.Path(place), keep=1)

        def save() -> None:
            checkpoints.save(state, next(steps), None, {"interval": {"steps": 0, "sums": {}}})
            checkpoints.wait()

        works = {"ours_save": save, "ours_restore": lambda: checkpoints.restore(state)}
        try:
            return finish(config, row, works | _torch_files(state, f"{place}/state.pt"), row["state_mb"], "mb")
        finally:
            checkpoints.close()


def _torch_files(state: Any, path: str) -> dict[str, Callable[[], Any]]:
    """torch.save and torch.load of the same arrays, without digests; {} without torch."""
    torch = torch_or_none()
    if torch is None:
        return {}
    tensors = [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(state)]
    torch.save(tensors, path)
    return {"torch_save": lambda: torch.save(tensors, path), "torch_restore": lambda: torch.load(path)}
