"""Trains a GPT on Shakespeare's plays: nanoGPT's recipe for a CPU in PyTorch, then ours with given numbers of steps.

Each run is its own process without a compilation cache, so its seconds are those of a user: imports, data, compilation,
steps, evaluation, and for ours checkpoints, export and pictures. The loss of all is that over the consecutive windows,
each read by itself, of the last tenth of the plays (validation and test of the data set); all train on the rest.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

import zoo
from benchmarks.quality import step_flops
from benchmarks.timer import RESULTS, append_row, circumstances, matmul_gflops, nominal_minutes
from train.config import read_settings
from train.data.streams import Stream
from train.loop import Trainer
from train.recipes import load_recipe
from train.settings import at_least
from train.timing import Phases
from zoo.errors import ZooError
from zoo.run import read_config

PEER_STEPS = 2000  # of nanoGPT's recipe


@dataclasses.dataclass(frozen=True)
class ShakespeareConfig:
    """Trains a GPT on Shakespeare's plays in fresh processes, in PyTorch and then ours; compares loss and time."""

    recipe: str = "shakespeare-gpt"  # our recipe: python -m train list
    steps: tuple[int, ...] = (720, 260)  # one run of ours for each; choose them to match the peer's time, and its loss
    flags: str = ""  # further flags of `python -m train RECIPE`, e.g. "--batch-size 64"
    peer: bool = True  # run nanoGPT's recipe in PyTorch first
    peer_steps: int = PEER_STEPS  # steps of the peer
    seed: int = 0  # of weights and batches
    output: str = str(RESULTS / "shakespeare.csv")  # the CSV to append to


def run(config: ShakespeareConfig) -> list[dict[str, Any]]:
    """Trains, prints and appends a row for each run; returns them.

    `seconds_of_peer` and `train_seconds_of_peer` are seconds over the peer's, in total and of the steps alone.
    """
    at_least("the number of steps", len(config.steps), 1)
    at_least("steps", min((*config.steps, config.peer_steps)), 1)
    settings = load_recipe(config.recipe).config()
    dataset = settings.data.load(zoo.model_info(settings.model.name).input_shape)
    splits = dataset.train, dataset.validation, dataset.test
    streams = [split.tokens for split in splits if isinstance(split, Stream)]
    if len(streams) < 3:
        raise ZooError(f"{config.recipe} must train on a text with validation and test splits; {dataset.name} has none")
    training, held_out = streams[0], np.concatenate(streams[1:])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        peer = config.peer and importlib.util.find_spec("torch") is not None
        if config.peer and not peer:
            print("torch is left out: it is not installed (pip install '.[benchmarks]')")
        if peer:
            np.savez(f"{place}/tokens.npz", train=training, validation=held_out)
            command = ["-m", "benchmarks.shakespeare_torch", f"{place}/tokens.npz"]
            output, measured = _timed([*command, str(config.peer_steps), str(config.seed)], place)
            result = json.loads(output.splitlines()[-1])
            row = {"framework": "torch", "recipe": "nanoGPT's for a CPU", "steps": config.peer_steps}
            rows.append({**row, "loss": result["loss"], "train_seconds": result["seconds"], **measured})
        for steps in config.steps:
            rows.append(_ours(config, steps, held_out, place))
    for row in rows:
        _finish(config, row, rows[0] if rows[0]["framework"] == "torch" else None)
        append_row(pathlib.Path(config.output), row)
    return rows


def _ours(config: ShakespeareConfig, steps: int, held_out: np.ndarray, place: str) -> dict[str, Any]:
    """The row of a run of ours; FLOPs are those of all training steps, with the optimizer's."""
    workdir = f"{place}/run-{steps}"
    flags = ["--steps", str(steps), "--eval-every", str(steps), "--seed", str(config.seed), "--workdir", workdir]
    _, measured = _timed(["-m", "train", config.recipe, *flags, *config.flags.split()], place)
    seconds = json.loads(pathlib.Path(workdir, "result.json").read_text())["seconds"]
    row: dict[str, Any] = {"framework": "flaxzoo", "recipe": config.recipe, "steps": steps}
    row |= {"loss": loss_of(zoo.load(workdir), held_out), "train_seconds": seconds["train"], **measured}
    return {**row, "training_flops": steps * flops_of_step(workdir, place)}


def _timed(command: list[str], place: str) -> tuple[str, dict[str, float]]:
    """The output of a Python process, its seconds, and matrix-product rates before and after; ZooError if it fails."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(dir=place)}
    before, start = matmul_gflops(), time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise ZooError(f"python {' '.join(command)} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return done.stdout, {"seconds": seconds, "gflops_before": before, "gflops_after": matmul_gflops()}


def loss_of(run: zoo.Run, tokens: np.ndarray) -> float:
    """Nats per token over the consecutive full windows of the model's context."""
    model, variables, inputs = run
    apply: Any = model.apply
    width = inputs.shape[0]
    count = (len(tokens) - 1) // width
    windows, targets = (tokens[i : i + count * width].reshape(count, width).astype(np.int32) for i in (0, 1))

    @jax.jit
    def total(windows: jax.Array, targets: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(apply(variables, windows))
        return -jax.numpy.take_along_axis(log_probabilities, targets[..., None], axis=-1).sum()

    pieces = [slice(i, i + 128) for i in range(0, count, 128)]
    return float(sum(total(windows[piece], targets[piece]) for piece in pieces)) / (count * width)


def flops_of_step(workdir: str, place: str) -> float:
    """FLOPs of a training step of the run in a folder."""
    stored = read_settings(read_config(pathlib.Path(workdir))["config"])
    settings = dataclasses.replace(stored, workdir=tempfile.mkdtemp(dir=place))
    dataset = settings.data.load(zoo.model_info(settings.model.name).input_shape)
    with Trainer(settings, pathlib.Path(settings.workdir), dataset, Phases()) as trainer:
        return step_flops(trainer, 1)


def _finish(config: ShakespeareConfig, row: dict[str, Any], peer: dict[str, Any] | None) -> None:
    """Adds the comparisons and circumstances to a row, and prints it."""
    minutes = nominal_minutes(row["seconds"], (row["gflops_before"], row["gflops_after"]))
    row |= {"training_flops": row.pop("training_flops", ""), "nominal_minutes": minutes, "flags": config.flags}
    for name in ("seconds", "train_seconds"):
        row[f"{name}_of_peer"] = row[name] / peer[name] if peer else ""
    row |= {"seed": config.seed, **circumstances()}
    beside = f", {row['seconds_of_peer']:.3f} of the peer's" if peer else ""
    alone = f", {row['train_seconds_of_peer']:.3f} of its" if peer else ""
    print(
        f"{row['framework']} {row['recipe']} {row['steps']} steps: loss {row['loss']:.4f}; {row['seconds']:.1f} s"
        f"{beside}; steps alone {row['train_seconds']:.1f} s{alone}; {minutes:.2f} nominal minutes; "
        f"{row['gflops_before']:.0f}, {row['gflops_after']:.0f} GFLOP/s of matrix product"
    )
