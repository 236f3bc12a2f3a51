"""The page of a detector: learning curves, precision by recall, errors by kind, and the images with most errors."""

import pathlib
from typing import Any

import jax
import numpy as np

from train.average_precision import ERRORS, Image, average_precision, curve, errors
from train.data.source import Dataset
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.run import Run

PRECISION, KINDS, WORST = "precision", "kinds", "worst"
COLOURS = {"right": "#2a9d3a", "localisation": "#e08a00", "class": "#b000b0", "duplicate": "#00a0c8"}
COLOURS |= {"background": "#d62020", "missed": "#2050d0"}


def draw(run: Run, dataset: Dataset, options: Options, metric: str, threshold: float) -> pathlib.Path:
    """Draws the pictures and the page of a detector; returns the page's path."""
    split = dataset.split(options.split)
    images = found(run, split)
    output, labels = options.make_output(), run.inputs.labels
    pictures = {CURVES: draw_curves(options.folder(), metric, output / f"{CURVES}.png")}
    pictures[PRECISION] = draw_precision(images, labels, output / f"{PRECISION}.png")
    pictures[KINDS] = draw_kinds(images, labels, threshold, output / f"{KINDS}.png")
    pictures[WORST] = draw_worst(images, split, run, threshold, options.number, output / f"{WORST}.png")
    captions = {
        CURVES: "Learning curves: loss and mean average precision by step, on training and validation data.",
        PRECISION: "Precision by recall, where a detection is right if it overlaps a box of its class by one half.",
        KINDS: f"Detections with a score of at least {threshold:g} that are wrong, by kind, and boxes that none found.",
        WORST: f"The images with the most errors (score at least {threshold:g}): "
        + ", ".join(f"{kind} {_name(colour)}" for kind, colour in COLOURS.items())
        + ".",
    }
    values = [average_precision(images, number) for number in range(len(labels))]
    summary = f"{dataset.name}: map_50 {np.nanmean(values):.4f} on {len(images):,} images of {options.split}"
    return write_page(options, summary, pictures, captions)


def _name(colour: str) -> str:
    names = {"#2a9d3a": "green", "#e08a00": "orange", "#b000b0": "purple", "#00a0c8": "light blue"}
    return {**names, "#d62020": "red", "#2050d0": "blue, dashed"}[colour]


def found(run: Run, split: Any) -> list[Image]:
    """What the model detects in a whole split, in pixels of the frame."""
    apply = jax.jit(run.model.apply)
    images = []
    for batch in split.eval_batches(8):
        args, kwargs = run.inputs.arguments(batch)
        detected = {name: np.asarray(x) for name, x in apply(run.variables, *args, **kwargs).items()}
        for i in np.flatnonzero(batch["weight"] > 0):
            kept, real = detected["labels"][i] >= 0, batch["box_label"][i] >= 0
            mine = (detected[name][i][kept] for name in ("boxes", "scores", "labels"))
            theirs = (batch[name][i][real] for name in ("boxes", "box_label", "box_ignored"))
            images.append(Image(*mine, *theirs))
    return images


def draw_precision(images: list[Image], labels: tuple[str, ...], path: pathlib.Path) -> pathlib.Path:
    """A line a class."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for number, label in enumerate(labels[:20]):
        recall, precision, _ = curve(images, number)
        if len(recall) and not np.isnan(recall).any():
            axis.step(recall, precision, where="post", label=f"{label} {average_precision(images, number):.3f}")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(title="average precision", loc="lower left")
    return save(figure, path)


def draw_kinds(images: list[Image], labels: tuple[str, ...], threshold: float, path: pathlib.Path) -> pathlib.Path:
    """Bars of counts: a group a kind, a bar a class."""
    import matplotlib.pyplot as plt

    counts = np.zeros((len(labels), len(ERRORS)), int)
    for image in images:
        for kind, which in errors(image, threshold).items():
            if kind in ERRORS:
                of = image.real_labels if kind == "missed" else image.labels
                np.add.at(counts, (of[which], ERRORS.index(kind)), 1)
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / min(len(labels), 20)
    for number, label in enumerate(labels[:20]):
        bars = axis.bar(np.arange(len(ERRORS)) + number * width, counts[number], width, label=label)
        axis.bar_label(bars, fontsize=7)
    axis.set_xticks(np.arange(len(ERRORS)) + 0.4 - width / 2, ERRORS)
    axis.set(ylabel=f"count in {len(images)} images")
    axis.legend()
    return save(figure, path)


def draw_worst(
    images: list[Image], split: Any, run: Run, threshold: float, number: int, path: pathlib.Path
) -> pathlib.Path:
    """The images with the most errors, worst first."""
    import matplotlib.pyplot as plt

    kinds = [errors(image, threshold) for image in images]
    wrong = np.array([sum(len(of[kind]) for kind in ERRORS) for of in kinds])
    worst = np.argsort(-wrong, kind="stable")[: max(1, number // 4)]
    columns = min(2, len(worst))
    rows = -(-len(worst) // columns)
    height, width = run.inputs.shape[:2]
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(6 * columns, 6 * rows * height / width + 0.3 * rows),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.ravel():
        axis.axis("off")
    pixels = split.read(worst)["image"]
    for axis, i, image in zip(axes.ravel(), worst, pixels, strict=False):
        axis.imshow(image)
        axis.set_title(f"example {i}: {wrong[i]} errors", fontsize=9)
        for kind, which in kinds[i].items():
            of, labels = (
                (images[i].real, images[i].real_labels) if kind == "missed" else (images[i].boxes, images[i].labels)
            )
            for k in which:
                _box(axis, of[k], COLOURS[kind], kind == "missed")
                if kind != "right":
                    axis.text(of[k][0], of[k][1] - 1, run.inputs.labels[labels[k]], color=COLOURS[kind], fontsize=6)
    return save(figure, path)


def _box(axis: Any, box: np.ndarray, colour: str, dashed: bool) -> None:
    import matplotlib.pyplot as plt

    style = "dashed" if dashed else "solid"
    sides = box[2:] - box[:2]
    axis.add_patch(plt.Rectangle((box[0], box[1]), *sides, fill=False, color=colour, linewidth=1.2, linestyle=style))
