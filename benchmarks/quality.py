"""Trains a recipe from seed to result, with wall time and the machine's speed; also the same recipe in PyTorch."""

import dataclasses
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, matmul_gflops, nominal_minutes
from train import run_folder
from train.__main__ import use_compilation_cache
from train.config import Config
from train.data.batches import Batches
from train.data.source import Dataset
from train.first_weights import load_data
from train.interrupt import Stop
from train.loop import Trainer
from train.recipes import load_recipe
from train.tasks.classification import Classification
from train.timing import Phases
from zoo.errors import ZooError
from zoo.weights import torchvision

# metrics with columns
KINDS = ("loss", "accuracy", "bits_per_character", "f1", "mean_average_precision", "nrmse", "mean_iou")
DECODED = ("exact_match", "error_rate", "bleu", "chrf")  # metrics of the decoded texts


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Trains a recipe and appends its results to a CSV; with --peer also the same recipe in PyTorch.

    By convention a recipe of less than ten minutes is trained with seeds 0, 1 and 2, a longer one with seed 0.
    """

    recipe: Positional[str]  # a recipe: python -m train list
    seed: int = 0  # of weights, data order, augmentation and dropout
    peer: bool = False  # also train in PyTorch, from the same weights on the same batches
    output: str = str(RESULTS / "quality.csv")  # the CSV to append to


def run(config: QualityConfig) -> list[dict[str, Any]]:
    """Trains, prints and appends a row for ours and with `peer` one for PyTorch; returns them."""
    if config.peer:
        import torch  # noqa: F401 - fail before the minutes of our own training

    recipe = load_recipe(config.recipe)
    use_compilation_cache()
    workdir = pathlib.Path("runs") / f"quality-{config.recipe}-{config.seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    settings = dataclasses.replace(recipe.config(), workdir=str(workdir), seed=config.seed)
    rates, phases = [matmul_gflops()], Phases()
    settings, path, _ = run_folder.take(settings)
    with phases("data"):
        dataset = load_data(settings, None)
    with phases("setup"):
        trainer = Trainer(settings, path, dataset, phases)
    variables = trainer.layout.fetch(trainer.state.variables())
    flops = settings.steps * step_flops(trainer, min(settings.steps, 100))
    with trainer, Stop() as stop:
        trainer.train(stop, until=settings.steps // 2)
        with phases("rate"):
            rates.append(matmul_gflops())
        trainer.train(stop)
        last_variables = trainer.layout.stored(trainer.state.eval_variables())
        result = trainer.finish(stop)
        last = trainer.evaluate(trainer.layout.restored(last_variables), dataset.test) if dataset.test else {}
    rates.append(matmul_gflops())
    seconds = result["seconds"]["total"] - result["seconds"]["rate"]
    rows = [_row(config, settings, "flaxzoo", result, last, flops, seconds, rates)]
    if config.peer:
        rates = [matmul_gflops()]
        start = time.perf_counter()
        metrics = train_peer(settings, dataset, variables, rates)
        rates.append(matmul_gflops())
        took = time.perf_counter() - start
        rows.append(_row(config, settings, "torch", {"data": dataset.name}, metrics, flops, took, rates))
    for row in rows:
        append_row(pathlib.Path(config.output), row)
        shown = {name: row[name] for name in row if name.endswith((*KINDS, *DECODED)) and isinstance(row[name], float)}
        shown_metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
        print(
            f"{row['framework']} {row['recipe']} seed {row['seed']} on {row['data']}: {shown_metrics}; "
            f"{row['seconds']:.0f} s, {row['nominal_minutes']:.2f} nominal minutes"
        )
    return rows


def step_flops(trainer: Trainer, steps: int) -> float:
    """FLOPs of a training step, the mean of the first `steps`: batches of texts differ in length."""
    counted, total = {}, 0
    for step in range(steps):
        batch = trainer.layout.put_batch(trainer.batches(step))
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in counted:
            counted[shapes] = zoo.count_flops(trainer.train_step, trainer.state, batch)
        total += counted[shapes]
    return total / steps


def _row(
    config: QualityConfig,
    settings: Config,
    framework: str,
    result: dict[str, Any],
    last: dict[str, float],
    flops: float,
    seconds: float,
    rates: list[float],
) -> dict[str, Any]:
    """A row: metrics of the exported weights on validation and test data, and of the last weights on test data."""
    row: dict[str, Any] = {
        "recipe": config.recipe,
        "framework": framework,
        "data": result["data"],
        "seed": config.seed,
        "steps": settings.steps,
    }
    measured = {"": result.get("test", {}), "last_": last, "validation_": result.get("validation", {})}
    row |= {before + kind: metrics.get(kind, "") for before, metrics in measured.items() for kind in KINDS}
    row |= {before + kind: measured[before].get(kind, "") for before in ("", "validation_") for kind in DECODED}
    row |= {"training_flops": flops, "seconds": round(seconds, 1)}
    row["nominal_minutes"] = nominal_minutes(seconds, rates)
    row |= dict(zip(("gflops_before", "gflops_halfway", "gflops_after"), rates, strict=True))
    return {**row, **circumstances()}


def train_peer(settings: Config, dataset: Dataset, variables: Any, rates: list[float]) -> dict[str, float]:
    """Test metrics after the recipe in PyTorch, from the same weights, with the same batches, inputs and optimizer.

    ZooError for a recipe with another optimizer than Adam at a constant rate, or with augmentation.
    """
    import torch

    from benchmarks.peers import torch_model

    optimizer_settings = settings.optimizer
    plain = dataclasses.replace(type(optimizer_settings)(), name="adam", schedule="constant")
    plain = dataclasses.replace(
        plain, learning_rate=optimizer_settings.learning_rate, decay_steps=optimizer_settings.decay_steps
    )
    if optimizer_settings != plain or settings.task != Classification() or dataset.test is None:
        raise ZooError("--peer trains only recipes with Adam at a constant rate and without augmentation")
    torch.manual_seed(settings.seed)
    inputs: Any = dataset.inputs
    peer = torch_model(settings.model.name, inputs.shape, num_classes=len(inputs.labels), **settings.model.args)
    peer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in torchvision.to_file(variables).items()})
    peer = peer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(peer.parameters(), lr=optimizer_settings.learning_rate)

    def images(batch: dict[str, np.ndarray]) -> Any:
        array = np.asarray(inputs.normalize(batch["image"])).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(array)).contiguous(memory_format=torch.channels_last)

    batches = Batches(dataset.train, settings.batch_size, settings.seed)
    for k, batch in enumerate(batches.from_step(0, settings.steps)):
        if k == settings.steps // 2:
            rates.append(matmul_gflops())
        optimizer.zero_grad(set_to_none=True)
        target = torch.from_numpy(batch["label"].astype(np.int64))
        torch.nn.functional.cross_entropy(peer(images(batch)), target).backward()
        optimizer.step()
    sums = {"loss": 0.0, "accuracy": 0.0, "count": 0.0}
    peer.eval()
    with torch.no_grad():
        for batch in dataset.test.eval_batches(settings.batch_size):
            weight, labels = torch.from_numpy(batch["weight"]), torch.from_numpy(batch["label"].astype(np.int64))
            logits = peer(images(batch))
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            sums["loss"] += float((losses * weight).sum())
            sums["accuracy"] += float(((logits.argmax(1) == labels) * weight).sum())
            sums["count"] += float(weight.sum())
    return settings.task.metrics(sums)
