"""The page of a segmenter: learning curves, the worst images with prediction and label, the confusion of classes."""

import pathlib
from typing import Any

import numpy as np

from train.data.source import Dataset
from train.report.images import draw_counts
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.run import Run
from zoo.segmenter import Segmenter, palette

CONFUSION, WORST = "confusion", "worst"
MOST = 6  # images on the page
CAPTIONS = {
    CURVES: "Learning curves: loss and mean IoU by step, on training and validation data.",
    CONFUSION: "Confusion of pixels: the share of a class's pixels (row) that was predicted as each class (column).",
    WORST: "The images with the most wrong pixels: the image, its label, the prediction, and the wrong pixels over the "
    "image, in the colour of the class that was predicted.",
}


def draw(run: Run, dataset: Dataset, options: Options, metric: str) -> pathlib.Path:
    """Draws the pictures and the page of a segmenter; returns the page's path."""
    split, segmenter, labels = dataset.split(options.split), Segmenter(run), run.inputs.labels
    output = options.make_output()
    pictures = {CURVES: draw_curves(options.folder(), metric, output / f"{CURVES}.png")}
    total, errors = np.zeros((len(labels), len(labels)), int), []
    for row in range(split.size):
        example = split.read(np.array([row]))
        counts = confusion(predicted(segmenter, example), example["mask"][0], len(labels))
        total += counts
        errors.append(1 - np.trace(counts) / max(counts.sum(), 1))
    pictures[CONFUSION] = draw_counts(total, labels, output / f"{CONFUSION}.png")
    worst = np.argsort(-np.array(errors), kind="stable")[: min(MOST, options.number)]
    pictures[WORST] = draw_worst(segmenter, split, worst, np.array(errors), output / f"{WORST}.png")
    share = 1 - np.trace(total) / max(total.sum(), 1)
    summary = f"{dataset.name}: {share:.2%} of the pixels of {split.size:,} examples of {options.split} are wrong"
    return write_page(options, summary, pictures, CAPTIONS)


def predicted(segmenter: Segmenter, example: Any) -> np.ndarray:
    """The classes [H, W] predicted of the first example of a batch."""
    return segmenter(example["image"][0]).argmax(axis=-1)


def confusion(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Counts of pixels int [classes, classes]: a row a label, a column a prediction."""
    counted = mask < classes
    pairs = mask[counted].astype(int) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def draw_worst(
    segmenter: Segmenter, split: Any, rows: np.ndarray, errors: np.ndarray, path: pathlib.Path
) -> pathlib.Path:
    """A row of four pictures an image."""
    import matplotlib.pyplot as plt

    classes = len(segmenter.inputs.labels)
    colours = np.array(palette(classes), np.uint8).reshape(-1, 3)
    figure, axes = plt.subplots(len(rows), 4, figsize=(12, 3.1 * len(rows)), layout="constrained", squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        example = split.read(np.array([row]))
        image, mask, found = example["image"][0], example["mask"][0], predicted(segmenter, example)
        shown = image[..., :3] if image.shape[-1] > 2 else np.repeat(image[..., :1], 3, axis=-1)
        label = np.where(mask[..., None] < classes, colours[np.minimum(mask, classes - 1)], np.uint8(128))
        wrong = (found != mask) & (mask < classes)
        marked = np.where(wrong[..., None], np.maximum(colours[found], [[[60, 0, 0]]]), shown).astype(np.uint8)
        titles = (f"example {row}", "label", "prediction", f"{errors[row]:.1%} wrong")
        for axis, picture, title in zip(line, (shown, label, colours[found], marked), titles, strict=True):
            axis.imshow(picture)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    return save(figure, path)
