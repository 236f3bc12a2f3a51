"""The page of an image classifier: confusion matrix, worst mistakes, first kernels, Grad-CAM or attention rollout."""

import pathlib
from typing import Any

import jax
import numpy as np

from train.data.source import Dataset
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.arrays import named_leaves
from zoo.errors import ZooError
from zoo.explain import explain, explainable
from zoo.run import Run
from zoo.transformer import ViT

BATCH = 256
CONFUSION, MISTAKES, KERNELS, ATTENTION = "confusion", "mistakes", "kernels", "attention"
CAPTIONS = {
    CURVES: "Learning curves: loss and accuracy by step, on training and validation data.",
    CONFUSION: "Confusion matrix: the share of a class's examples (row) that was predicted as each class (column).",
    MISTAKES: "The worst mistakes: wrong predictions with the highest loss, with prediction and label.",
    KERNELS: "The first layer's kernels, each scaled to its own range.",
    ATTENTION: "What the prediction depends on: the image; Grad-CAM (Selvaraju et al. 2017), where the last feature "
    "maps support it; the gradient of its logit by the pixels (largest channel).",
}
ROLLOUT = (
    "What the prediction depends on: the image; attention rollout (Abnar and Zuidema 2020), the share of each patch in "
    "what is classified; the gradient of its logit by the pixels (largest channel)."
)


def draw(run: Run, dataset: Dataset, options: Options, metric: str) -> pathlib.Path:
    """Draws the pictures and the page of an image classifier; returns the page's path. ZooError for another model."""
    inputs: Any = run.inputs
    if inputs.kind != "image":
        raise ZooError("report draws image classifiers and language models; this run classifies texts")
    split = dataset.split(options.split)
    chosen = [inputs.pixels(image) for image in options.images]
    check_convolutional(run)
    output = options.make_output()
    logits, labels = predictions(run, split)
    pictures = {CURVES: draw_curves(options.folder(), metric, output / f"{CURVES}.png")}
    pictures[CONFUSION] = draw_confusion(logits, labels, run.inputs.labels, output / f"{CONFUSION}.png")
    pictures[MISTAKES] = draw_mistakes(run, split, logits, labels, options.number, output / f"{MISTAKES}.png")
    pictures[KERNELS] = draw_kernels(run, output / f"{KERNELS}.png")
    images = np.stack(chosen) if chosen else split.read(np.arange(min(8, split.size)))["image"]
    pictures[ATTENTION] = draw_attention(run, images, output / f"{ATTENTION}.png")
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    summary = f"{dataset.name}: accuracy {accuracy:.4f} on {len(labels):,} examples of {options.split}"
    captions = {**CAPTIONS, ATTENTION: ROLLOUT} if isinstance(run.model, ViT) else CAPTIONS
    return write_page(options, summary, pictures, captions)


def predictions(run: Run, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n, classes] and labels [n] of a whole split."""
    inputs: Any = run.inputs
    apply = jax.jit(lambda images: run.model.apply(run.variables, inputs.normalize(images)))
    logits, labels = [], []
    for batch in split.eval_batches(BATCH):
        kept = batch["weight"] > 0
        logits.append(np.asarray(apply(batch["image"]), np.float32)[kept])
        labels.append(batch["label"][kept])
    return np.concatenate(logits), np.concatenate(labels)


def draw_confusion(logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...], path: pathlib.Path) -> pathlib.Path:
    """A matrix of shares by row; numbers in it up to twenty classes."""
    return draw_counts(confusion(logits, labels, len(names)), names, path)


def draw_counts(counts: np.ndarray, names: tuple[str, ...], path: pathlib.Path) -> pathlib.Path:
    """A confusion matrix [classes, classes] as shares by row; its counts in it up to twenty classes."""
    import matplotlib.pyplot as plt

    classes = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(3 + 0.45 * classes, 16)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the row", shrink=0.8)
    axis.set(xlabel="prediction", ylabel="label")
    if classes <= 50:
        axis.set_xticks(range(classes), names, rotation=90)
        axis.set_yticks(range(classes), names)
    if classes <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
    return save(figure, path)


def confusion(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts int [classes, classes]: a row per label, a column per prediction."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, logits.argmax(axis=1), labels=range(classes))


def draw_mistakes(
    run: Run, split: Any, logits: np.ndarray, labels: np.ndarray, number: int, path: pathlib.Path
) -> pathlib.Path:
    """The wrong predictions with the highest loss, worst first."""
    import matplotlib.pyplot as plt

    worst = worst_mistakes(logits, labels, number)
    columns = 8
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.9 * rows), layout="constrained", squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    if len(worst):
        images = split.read(worst)["image"]
        for axis, i, image in zip(axes.ravel(), worst, images, strict=False):
            predicted, right = run.inputs.labels[logits[i].argmax()], run.inputs.labels[labels[i]]
            _show(axis, image)
            axis.set_title(f"predicted {predicted}\nlabel {right}", fontsize=8)
    else:
        axes[0, 0].set_title("no mistakes", fontsize=8)
    return save(figure, path)


def worst_mistakes(logits: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of up to `number` wrong predictions, by decreasing loss."""
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(-losses[wrong], kind="stable")][:number]


def first_kernels(run: Run) -> dict[str, np.ndarray]:
    """The kernels of the convolutions that may read the image, by name."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(run.variables).items() if name.endswith("kernel")}
    return {name: leaf for name, leaf in leaves.items() if leaf.ndim == 4 and leaf.shape[2] == run.inputs.shape[-1]}


def check_convolutional(run: Run) -> None:
    """ZooError for a model without kernels to draw, or with neither stages nor attention."""
    if not first_kernels(run) or not explainable(run):
        name = type(run.model).__name__
        raise ZooError(f"report draws ViTs, and convolutions with features stage1, stage2, ...; {name} has none")


def draw_kernels(run: Run, path: pathlib.Path) -> pathlib.Path:
    """Kernels [h, w, C, out] of the convolution that reads the image; in colour where it has 3 channels."""
    import matplotlib.pyplot as plt

    channels = run.inputs.shape[-1]
    name, kernel = next(iter(first_kernels(run).items()))
    kernels = np.moveaxis(kernel, -1, 0)[:64]
    low, high = (f(kernels, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    kernels = (kernels - low) / np.maximum(high - low, 1e-12)
    columns = min(16, len(kernels))
    rows = -(-len(kernels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.7 * columns, 0.7 * rows + 0.4), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for axis, one in zip(axes.ravel(), kernels, strict=False):
        axis.imshow(one if channels == 3 else one.mean(-1), cmap="gray", vmin=0, vmax=1)
    figure.suptitle(f"{name} {list(kernel.shape)}", fontsize=9)
    return save(figure, path)


def draw_attention(run: Run, images: np.ndarray, path: pathlib.Path) -> pathlib.Path:
    """One column per image, uint8 [n, H, W, C]: the image, Grad-CAM or attention over it, the gradient by pixels."""
    import matplotlib.pyplot as plt

    logits, maps, gradients = (np.asarray(a, np.float32) for a in jax.jit(lambda x: explain(run, x))(images))
    probabilities = np.asarray(jax.nn.softmax(logits))
    figure, axes = plt.subplots(3, len(images), figsize=(1.8 * len(images), 5.8), layout="constrained", squeeze=False)
    extent = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)
    for i, image in enumerate(images):
        best = logits[i].argmax()
        axes[0, i].set_title(f"{run.inputs.labels[best]} {probabilities[i, best]:.0%}", fontsize=8)
        _show(axes[0, i], image)
        _show(axes[1, i], image)
        axes[1, i].imshow(maps[i], cmap="jet", alpha=0.45, extent=extent, interpolation="bilinear")
        strength = np.abs(gradients[i]).max(axis=-1)
        axes[2, i].imshow(strength, cmap="gray", vmax=np.percentile(strength, 99.5))
    middle = "attention" if isinstance(run.model, ViT) else "Grad-CAM"
    for axis, label in zip(axes[:, 0], ("image", middle, "gradient"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return save(figure, path)


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
