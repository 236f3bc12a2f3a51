"""The page of a language model: its cells along held-out text, after Karpathy, Johnson and Li 2015.

Cells are those asked for, or for each property of the text (position in the line, inside quotes or brackets) the cell
that correlates most with it. Colours are tanh(c) of an LSTM and h of other cells.
"""

import dataclasses
import html
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.data.source import Dataset
from train.data.streams import Stream
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.arrays import named_leaves
from zoo.errors import ZooError
from zoo.run import Run

TEXT = 3000  # tokens shown
WINDOWS = 256  # from the zero state, over which the loss by position is a mean
CELLS, GATES, POSITIONS = "cells", "gates", "positions"
CAPTIONS = {
    CURVES: "Learning curves: loss and bits per character by step, on training and validation data.",
    CELLS: "Cells along held-out text, from blue (-1) through white to red (1). The page's end has more of it.",
    GATES: "Gate activations: histograms over cells and tokens, by layer. Near 0 and 1 they saturate: an input gate at "
    "0 closes the cell, a forget gate at 1 keeps it.",
    POSITIONS: "Loss by position, starting from an empty state: the value of a longer context.",
}


def draw(run: Run, dataset: Dataset, options: Options, metric: str) -> pathlib.Path:
    """Draws the pictures and the page of a language model; returns the page's path."""
    inputs: Any = run.inputs
    split = getattr(dataset, options.split) or dataset.validation
    if split is None:
        raise ZooError(f"{dataset.name} has no held-out text")
    tokens = split.tokens[:TEXT].astype(np.int32)
    chosen: dict[str, np.ndarray] = {}
    gates: dict[str, np.ndarray] = {}
    symbols = [inputs.decode(token) for token in tokens]
    if getattr(run.model, "recurrent", False):
        activations, gates = trace(run, tokens)
        chosen = choose_cells(activations, symbols, options.cells)
    elif options.cells:
        raise ZooError(f"{type(run.model).__name__} has no cells to draw; leave cells out")
    output = options.make_output()
    pictures = {CURVES: draw_curves(options.folder(), metric, output / f"{CURVES}.png")}
    if chosen:
        pictures[CELLS] = draw_text(symbols, chosen, output / f"{CELLS}.png")
    if gates:
        pictures[GATES] = draw_gates(gates, output / f"{GATES}.png")
    losses = loss_by_position(run, split)
    pictures[POSITIONS] = draw_positions(losses, inputs.length, output / f"{POSITIONS}.png")
    name = options.split if getattr(dataset, options.split) else "validation"
    summary = f"{dataset.name}: the first {len(tokens):,} tokens of {name}"
    coloured = "".join(coloured_text(title, symbols, values) for title, values in chosen.items())
    return write_page(options, summary, pictures, CAPTIONS, coloured)


def trace(run: Run, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Activations in [-1, 1] by layer, [T, H], after each token; and gates by layer and name, [T, H]."""
    apply = jax.jit(lambda tokens: run.model.apply(run.variables, tokens, mutable=["features"])[1])
    features = {name: np.asarray(leaf)[0] for name, leaf in named_leaves(apply(tokens[None])["features"]).items()}
    cells = {name.split("/")[-2]: np.tanh(leaf) for name, leaf in features.items() if name.endswith("/cell")}
    gates = {name.removeprefix("layers/"): leaf for name, leaf in features.items() if name.endswith("_gate")}
    if not cells:
        if "layers/output" not in features:
            raise ZooError(f"{type(run.model).__name__} sows no cells to draw")
        cells = {"output": features["layers/output"]}
    return cells, gates


def choose_cells(activations: Mapping[str, np.ndarray], symbols: list[str], asked: list[str]) -> dict[str, np.ndarray]:
    """Activations [T] by title: of the cells asked for, `layer0:12`, or of those that correlate most with the text."""
    chosen = {}
    for name in asked:
        layer, _, number = name.partition(":")
        if layer not in activations or not number.isdecimal() or int(number) >= activations[layer].shape[1]:
            known = ", ".join(f"{key}:0 to {key}:{value.shape[1] - 1}" for key, value in activations.items())
            raise ZooError(f"no cell {name!r}; there are {known}")
        chosen[f"cell {name}"] = activations[layer][:, int(number)]
    if chosen:
        return chosen
    for what, values in text_properties(symbols).items():
        best, title, along = 0.0, "", None
        for layer, cells in activations.items():
            correlation = np.abs(correlations(cells, values))
            i = int(correlation.argmax())
            if correlation[i] > best:
                best, title, along = correlation[i], f"{layer}:{i}", cells[:, i]
        if along is not None:
            chosen[f"cell {title}, which correlates with {what} (r {best:.2f})"] = along
    return chosen


def correlations(cells: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Pearson's r of each column of cells [T, H] with values [T]; 0 where either is constant."""
    cells, values = cells - cells.mean(axis=0), values - values.mean()
    scale = np.sqrt((cells**2).sum(axis=0) * (values**2).sum())
    return (cells * values[:, None]).sum(axis=0) / np.where(scale > 1e-12, scale, np.inf)


def text_properties(symbols: list[str]) -> dict[str, np.ndarray]:
    """Properties of the text after each token, float [T] by name."""
    column, quoted, depth, indent, leading, rows = 0, "", 0, 0, True, []
    for symbol in symbols:
        for character in symbol:
            if character == "\n":
                column, indent, leading, quoted = 0, 0, True, ""
            else:
                column += 1
                leading = leading and character == " "
                indent += leading
                if character in "\"'" and quoted in ("", character):
                    quoted = "" if quoted else character
                depth = max(0, depth + (character in "([{") - (character in ")]}"))
        rows.append((min(column, 80), bool(quoted), min(depth, 4), indent, symbol[-1:].isspace()))
    names = ("the position in the line", "being inside quotes", "being inside brackets", "indentation", "a word's end")
    return dict(zip(names, np.array(rows, np.float64).T, strict=True))


def draw_text(symbols: list[str], chosen: Mapping[str, np.ndarray], path: pathlib.Path) -> pathlib.Path:
    """The first lines of the text, coloured by each cell."""
    import matplotlib.pyplot as plt

    rows, width = 14, 88
    figure, axes = plt.subplots(len(chosen), 1, figsize=(11, 2.9 * len(chosen)), layout="constrained", squeeze=False)
    colours = plt.get_cmap("bwr")
    for axis, (title, values) in zip(axes[:, 0], chosen.items(), strict=True):
        axis.set(xlim=(0, width), ylim=(rows, 0), title=title)
        axis.axis("off")
        row, column = 0, 0
        for symbol, value in zip(symbols, values, strict=True):
            for character in symbol:
                if character == "\n" or column >= width:
                    row, column = row + 1, 0
                if row >= rows or character == "\n":
                    continue
                axis.add_patch(plt.Rectangle((column, row), 1, 1, color=colours(0.5 + 0.3 * value), lw=0))
                axis.text(column + 0.5, row + 0.5, character, ha="center", va="center", family="monospace", fontsize=7)
                column += 1
            if row >= rows:
                break
    return save(figure, path)


def coloured_text(title: str, symbols: list[str], values: np.ndarray) -> str:
    """The same as HTML, the whole text."""
    spans = []
    for symbol, value in zip(symbols, values, strict=True):
        strength, colour = min(abs(float(value)), 1.0), "255,60,60" if value > 0 else "70,100,255"
        spans.append(f"<span style='background:rgba({colour},{0.8 * strength:.2f})'>{html.escape(symbol)}</span>")
    return f"<h2>{html.escape(title)}</h2><pre style='line-height:1.3;white-space:pre-wrap'>{''.join(spans)}</pre>"


def draw_gates(gates: Mapping[str, np.ndarray], path: pathlib.Path) -> pathlib.Path:
    """One histogram per gate, one line per layer."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(name.rsplit("/", 1)[1] for name in gates))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.2), layout="constrained", squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for name, values in gates.items():
            if name.endswith(f"/{kind}"):
                left, right = (values < 0.1).mean(), (values > 0.9).mean()
                label = f"{name.rsplit('/', 1)[0]}: {left:.0%} below 0.1, {right:.0%} above 0.9"
                axis.hist(values.ravel(), bins=50, range=(0, 1), density=True, histtype="step", label=label)
        axis.set(title=kind.replace("_", " "), xlabel="activation", ylabel="density")
        axis.legend(fontsize=7)
    return save(figure, path)


def loss_by_position(run: Run, split: Stream) -> np.ndarray:
    """Mean nats [up to 4 * window] by position, starting from an empty state, over up to 256 windows spread over the
    split and no longer than the model reads. In packed documents the position is that within the document's part."""
    length = min(4 * split.window, split.size, getattr(run.model, "max_length", split.size))
    starts = np.linspace(0, split.size - length, min(WINDOWS, split.size - length + 1)).astype(int)
    batch = dataclasses.replace(split, window=length).read(starts)
    args, kwargs = run.inputs.arguments(batch)

    @jax.jit
    def losses(args: Any, kwargs: Any) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(
            jnp.asarray(run.model.apply(run.variables, *args, **kwargs), jnp.float32)
        )
        return -jnp.take_along_axis(log_probabilities, batch["targets"][..., None], axis=-1)[..., 0]

    numbers = batch.get("segments", np.zeros(batch["tokens"].shape, np.int32))
    steps = np.arange(length)
    begins = np.where(np.diff(numbers, axis=1, prepend=-1) != 0, steps, 0)
    places = (steps - np.maximum.accumulate(begins, axis=1)).ravel()
    weight = batch["weight"].ravel()
    counts = np.bincount(places, weight)
    sums = np.bincount(places, np.asarray(losses(args, kwargs)).ravel() * weight)
    return sums[counts > 0] / counts[counts > 0]


def draw_positions(losses: np.ndarray, window: int, path: pathlib.Path) -> pathlib.Path:
    """Loss by position, and its mean over eight neighbours; the window of training as a line."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.plot(np.arange(len(losses)), losses, alpha=0.35, label="each position")
    if len(losses) >= 16:
        smooth = np.convolve(losses, np.ones(8) / 8, mode="valid")
        axis.plot(np.arange(len(smooth)) + 3.5, smooth, label="mean of 8")
    axis.axvline(window, color="gray", ls=":", label="training window")
    axis.set(xlabel="tokens read", ylabel="nats")
    axis.legend()
    return save(figure, path)
