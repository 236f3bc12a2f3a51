"""python -m train report RUN: what a model learnt and where it errs, as pictures and a page that opens offline.

Image classifiers here; language models in `train.cells`, translations in `train.alignments`.
"""

import base64
import dataclasses
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import zoo
from train.config import Config, from_json
from train.data import Split, eval_batches, load_dataset
from train.report import draw_curves, write_text
from train.tasks.language_model import LanguageModel
from train.tasks.translation import Translation
from zoo.arrays import named_leaves
from zoo.errors import ZooError
from zoo.features import adding
from zoo.inputs.image import ImageInputs
from zoo.run import Run, read_config
from zoo.transformer import ViT

BATCH = 256
CURVES, CONFUSION, MISTAKES, KERNELS, ATTENTION = "curves", "confusion", "mistakes", "kernels", "attention"
CAPTIONS = {
    CURVES: "Learning curves: loss and accuracy by step, on training and validation data.",
    CONFUSION: "Confusion matrix: of the examples of a class (row), the share that was called each class (column).",
    MISTAKES: "The worst mistakes: the wrong answers with the highest loss, with what was said and what is right.",
    KERNELS: "The first layer's kernels, each stretched to its own range.",
    ATTENTION: "What the answer rests on: the image; Grad-CAM (Selvaraju et al. 2017), where the last maps speak for "
    "the answer; the gradient of the answer's logit by the pixels, its largest channel.",
}
ROLLOUT = (
    "What the answer rests on: the image; attention rollout (Abnar and Zuidema 2020), how much of what is classified "
    "came from each patch; the gradient of the answer's logit by the pixels, its largest channel."
)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Draws what a trained model learnt and where it errs."""

    run: tyro.conf.Positional[str]  # a run folder
    images: list[str] = dataclasses.field(default_factory=list)  # image files to explain; default: some of the split
    split: Literal["test", "validation", "train"] = "test"  # the split whose mistakes are shown
    output: str | None = None  # where the pictures and report.html go; default: RUN/report
    number: int = 24  # mistakes shown
    # of a language model: cells to colour held-out text by, as layer0:12; default: those that go most with the text
    cells: list[str] = dataclasses.field(default_factory=list)


def report_command(args: list[str]) -> None:
    """Runs `python -m train report RUN ...` and prints the page's path."""
    print(draw_report(tyro.cli(ReportConfig, args=args, prog="python -m train report")))


def draw_report(config: ReportConfig) -> pathlib.Path:
    """Draws the pictures and the page; returns the page's path. ZooError for what is not a run or an image."""
    import matplotlib

    matplotlib.use("Agg")
    folder = pathlib.Path(config.run)
    settings: Config = from_json(read_config(folder).get("config"))
    run = zoo.load(folder)
    dataset = load_dataset(settings.data, run.inputs.shape, run.inputs)
    if isinstance(settings.task, LanguageModel):
        from train.cells import draw_cells

        return draw_cells(config, folder, settings, run, dataset)
    if isinstance(settings.task, Translation):
        from train.alignments import draw_translations

        return draw_translations(config, folder, settings, run, dataset)
    if not isinstance(run.inputs, ImageInputs):
        raise ZooError("report draws image classifiers and language models; this run classifies texts")
    split: Split | None = getattr(dataset, config.split)
    if split is None:
        raise ZooError(f"{dataset.name} has no split {config.split} with labels")
    chosen = [run.inputs.pixels(image) for image in config.images]
    output = pathlib.Path(config.output) if config.output else folder / "report"
    check_convolutional(run)
    output.mkdir(parents=True, exist_ok=True)
    logits, labels = predictions(run, split)
    pictures = {CURVES: draw_curves(folder, settings.task.metric, output / f"{CURVES}.png")}
    pictures[CONFUSION] = draw_confusion(logits, labels, run.inputs.labels, output / f"{CONFUSION}.png")
    pictures[MISTAKES] = draw_mistakes(run, split, logits, labels, config.number, output / f"{MISTAKES}.png")
    pictures[KERNELS] = draw_kernels(run, output / f"{KERNELS}.png")
    images = np.stack(chosen) if chosen else split.read(np.arange(min(8, split.size)))["image"]
    pictures[ATTENTION] = draw_attention(run, images, output / f"{ATTENTION}.png")
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    summary = f"{dataset.name}: accuracy {accuracy:.4f} on {len(labels):,} examples of {config.split}"
    captions = {**CAPTIONS, ATTENTION: ROLLOUT} if isinstance(run.model, ViT) else CAPTIONS
    return write_page(folder, summary, pictures, captions, output / "report.html")


def predictions(run: Run, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n, classes] and labels [n] of a whole split."""
    inputs: Any = run.inputs
    apply = jax.jit(lambda images: run.model.apply(run.variables, inputs.normalize(images)))
    logits, labels = [], []
    for batch in eval_batches(split, BATCH):
        kept = batch["weight"] > 0
        logits.append(np.asarray(apply(batch["image"]), np.float32)[kept])
        labels.append(batch["label"][kept])
    return np.concatenate(logits), np.concatenate(labels)


def draw_confusion(logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...], path: pathlib.Path) -> pathlib.Path:
    """A matrix of shares by row; numbers in it up to twenty classes."""
    import matplotlib.pyplot as plt

    classes = len(names)
    counts = confusion(logits, labels, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(3 + 0.45 * classes, 16)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the row", shrink=0.8)
    axis.set(xlabel="said", ylabel="right")
    if classes <= 50:
        axis.set_xticks(range(classes), names, rotation=90)
        axis.set_yticks(range(classes), names)
    if classes <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
    return save(figure, path)


def confusion(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts int [classes, classes]: rows are right, columns said."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return counts


def draw_mistakes(
    run: Run, split: Split, logits: np.ndarray, labels: np.ndarray, number: int, path: pathlib.Path
) -> pathlib.Path:
    """The wrong answers with the highest loss, worst first."""
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
            said, right = run.inputs.labels[logits[i].argmax()], run.inputs.labels[labels[i]]
            _show(axis, image)
            axis.set_title(f"said {said}\nis {right}", fontsize=8)
    else:
        axes[0, 0].set_title("no mistakes", fontsize=8)
    return save(figure, path)


def worst_mistakes(logits: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of up to `number` wrong answers, by falling loss."""
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(-losses[wrong], kind="stable")][:number]


def first_kernels(run: Run) -> dict[str, np.ndarray]:
    """The kernels of the convolutions that may see the image, by name."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(run.variables).items() if name.endswith("kernel")}
    return {name: leaf for name, leaf in leaves.items() if leaf.ndim == 4 and leaf.shape[2] == run.inputs.shape[-1]}


def last_stage(run: Run) -> tuple[str, tuple[int, ...]]:
    """Name and shape [h, w, C] of the last maps that the model sows as a stage."""
    features = zoo.registry.features_of(run.model, *run.inputs.example())
    return max(((n, s) for n, s in features.items() if n.startswith("stage") and len(s) == 3), default=("", ()))


def check_convolutional(run: Run) -> None:
    """ZooError for a model of which there are no kernels to draw, or neither stages nor attention."""
    if not first_kernels(run) or not (isinstance(run.model, ViT) or last_stage(run)[0]):
        name = type(run.model).__name__
        raise ZooError(f"report draws ViTs, and convolutions with features stage1, stage2, ...; {name} has none")


def draw_kernels(run: Run, path: pathlib.Path) -> pathlib.Path:
    """Kernels [h, w, C, out] of the convolution that sees the image; one with 3 channels in colour."""
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
    """A column an image, uint8 [n, H, W, C]: the image, Grad-CAM or attention over it, the gradient by its pixels."""
    import matplotlib.pyplot as plt

    logits, maps, gradients = (np.asarray(a, np.float32) for a in jax.jit(lambda x: explain(run, x))(images))
    probabilities = np.asarray(jax.nn.softmax(logits))
    figure, axes = plt.subplots(3, len(images), figsize=(1.8 * len(images), 5.8), layout="constrained", squeeze=False)
    extent = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)
    for i, image in enumerate(images):
        said = logits[i].argmax()
        axes[0, i].set_title(f"{run.inputs.labels[said]} {probabilities[i, said]:.0%}", fontsize=8)
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


def explain(run: Run, images: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of uint8 images [B, H, W, C]: logits, Grad-CAM of the answer [B, h, w], and its gradient by the input.

    Grad-CAM is of the last stage: the ReLU of its maps, weighed by the mean gradient of the answer's logit by each. A
    ViT has attention instead.
    """
    inputs: Any = run.inputs
    x = inputs.normalize(jnp.asarray(images))
    if isinstance(run.model, ViT):
        return explain_by_attention(run.model, run.variables, x)
    stage, shape = last_stage(run)

    def answer(x: jax.Array, delta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        with adding(stage, delta):
            logits, changed = run.model.apply(run.variables, x, mutable=["features"])
        return jnp.sum(jnp.max(logits, axis=-1).astype(jnp.float32)), (logits, changed["features"][stage])

    zeros = jnp.zeros((len(images), *shape), run.model.dtype)
    (by_x, by_maps), (logits, maps) = jax.grad(answer, argnums=(0, 1), has_aux=True)(x, zeros)
    weights = jnp.mean(by_maps, axis=(1, 2), keepdims=True)
    return logits, jax.nn.relu(jnp.sum(weights * maps, axis=-1)), by_x


def explain_by_attention(model: ViT, variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of normalised images: logits, the share of each patch [B, h, w] in what is classified, the gradient by x."""

    def answer(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, changed = model.apply(variables, x, mutable=["features"])
        return jnp.sum(jnp.max(logits, axis=-1).astype(jnp.float32)), (logits, changed["features"]["layers"])

    by_x, (logits, layers) = jax.grad(answer, has_aux=True)(x)
    shares = rollout([layers[f"layer{i}"]["attention"]["weights"] for i in range(model.num_layers)])
    shares = shares[:, 0, 1:] if model.pooling == "token" else jnp.mean(shares, axis=1)
    side = model.image_size // model.patch_size
    return logits, shares.reshape(-1, side, side), by_x


def rollout(weights: Sequence[jax.Array]) -> jax.Array:
    """The share [B, T, T] that each token read has in each put out, of attention weights [B, N, T, T] by layer.

    The product of the means over heads, half of each being the residual stream (Abnar and Zuidema 2020, section 3).
    """
    stream = jnp.eye(weights[0].shape[-1])
    shares = jnp.broadcast_to(stream, (len(weights[0]), *stream.shape))
    for layer in weights:
        shares = (jnp.mean(layer, axis=1) + stream) / 2 @ shares
    return shares


def write_page(
    folder: pathlib.Path,
    summary: str,
    pictures: dict[str, pathlib.Path],
    captions: Mapping[str, str],
    path: pathlib.Path,
    more: str = "",
) -> pathlib.Path:
    """One HTML page with the pictures in it, and `more` HTML: it needs no other file and no network."""
    model = read_config(folder)["model"]
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(folder.name)}</title>",
        "<style>body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}img{max-width:100%}</style>",
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p>{html.escape(model['name'])} {html.escape(json.dumps(model['args']))} on {html.escape(summary)}.</p>",
    ]
    for name, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<p>{captions[name]}</p><img alt='{name}' src='data:image/png;base64,{data}'>")
    write_text(path, "\n".join([*parts, more]) + "\n")
    return path


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
