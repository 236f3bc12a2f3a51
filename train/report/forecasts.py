"""The page of a forecaster: held-out predictions beside the series, and the errors."""

import pathlib
from typing import Any

import numpy as np

from train.data.source import Dataset
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.run import Run

BATCH, ROWS = 64, 500  # windows at a time; rows that are drawn
PREDICTIONS, ERRORS = "predictions", "errors"
CAPTIONS = {
    CURVES: "Learning curves: mean squared error and error relative to the series' deviation by step.",
    PREDICTIONS: "The first held-out rows (line) and their predictions from the rows up to the horizon before (dots).",
    ERRORS: "Errors of all predictions, in the units of the table.",
}


def draw(run: Run, dataset: Dataset, options: Options, metric: str) -> pathlib.Path:
    """Draws the pictures and the page of a forecaster; returns the page's path."""
    split = dataset.split(options.split)
    output = options.make_output()
    actual, predicted = predictions(run, split)
    pictures = {CURVES: draw_curves(options.folder(), metric, output / f"{CURVES}.png")}
    pictures[PREDICTIONS] = draw_predictions(run, split, output / f"{PREDICTIONS}.png")
    pictures[ERRORS] = draw_errors(run, predicted - actual, output / f"{ERRORS}.png")
    rmse = np.sqrt(((predicted - actual) ** 2).mean(axis=0))
    errors = ", ".join(f"{name} {value:.4g}" for name, value in zip(targets(run), rmse, strict=True))
    summary = f"{dataset.name}: root mean squared error of {len(actual):,} predictions of {options.split}: {errors}"
    return write_page(options, summary, pictures, CAPTIONS)


def targets(run: Run) -> tuple[str, ...]:
    inputs: Any = run.inputs
    return inputs.targets


def predictions(run: Run, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Actual and predicted targets [n, targets] of a split, in order, in the units of the table."""
    inputs: Any = run.inputs
    actual, predicted = [], []
    for batch in split.eval_batches(BATCH):
        due = (batch["counted"] > 0) & (batch["weight"] > 0)[:, None]
        args, kwargs = inputs.arguments(batch)
        predicted.append(np.asarray(run.model.apply(run.variables, *args, **kwargs))[due])
        actual.append(batch["targets"][due])
    return inputs.decode(np.concatenate(actual)), inputs.decode(np.concatenate(predicted))


def draw_predictions(run: Run, split: Any, path: pathlib.Path) -> pathlib.Path:
    """The first rows of a split and their predictions, one axis a target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    actual, predicted = (array[:ROWS] for array in predictions(run, split))
    names = targets(run)
    figure, axes = plt.subplots(len(names), 1, figsize=(10, 2.6 * len(names)), layout="constrained", squeeze=False)
    for axis, name, line, dots in zip(axes[:, 0], names, actual.T, predicted.T, strict=True):
        axis.plot(line, label="actual")
        axis.plot(dots, ".", markersize=3, label="predicted")
        axis.set(ylabel=name)
        axis.legend(loc="upper right")
    axes[-1, 0].set(xlabel="held-out row")
    return save(figure, path)


def draw_errors(run: Run, errors: np.ndarray, path: pathlib.Path) -> pathlib.Path:
    """A histogram of the errors [n, targets], one axis a target."""
    import matplotlib.pyplot as plt

    names = targets(run)
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.2), layout="constrained", squeeze=False)
    for axis, name, values in zip(axes[0], names, errors.T, strict=True):
        axis.hist(values, bins=50)
        axis.set(title=name, xlabel="predicted - actual", ylabel="predictions")
    return save(figure, path)
