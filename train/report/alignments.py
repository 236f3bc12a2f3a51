"""The page of an encoder-decoder: decoded samples, attention, quality by length, worst targets.

The attention is that of each decoded token to the tokens of the source: a recurrent decoder's, or the mean over a
Transformer's layers and heads.
"""

import html
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.data.source import Dataset
from train.quality import edit_distance, quality, spaceless, units
from train.report.page import CURVES, Options, draw_curves, save, write_page
from zoo.errors import ZooError
from zoo.explain import attention
from zoo.inputs.pairs import Pair
from zoo.run import Run

Translations = Callable[[Run, Sequence[str]], list[str]]

SAMPLES, PICTURES, TEXTS, BINS = 8, 4, 2000, 8
ATTENTION, LENGTHS = "attention", "lengths"
CAPTIONS = {
    CURVES: "Learning curves: loss and teacher-forced accuracy by step.",
    ATTENTION: "Attention of each decoded token (row) to the tokens of the source (column).",
    LENGTHS: "Quality by length: edits per unit of the references, by the source's length in tokens.",
}


def samples(run: Run, texts: Sequence[Pair], translations: Translations, workdir: pathlib.Path) -> str:
    """Decoded targets of the first pairs, and a picture of their attention in `workdir`."""
    texts = texts[:SAMPLES]
    decoded = translations(run, [source for source, _ in texts])
    lines = []
    for (source, right), target in zip(texts, decoded, strict=True):
        lines.append(f"{source} -> {target}" + (f" (right: {right})" if target != right else ""))
    picture = draw_attention(run, texts, decoded, workdir / "attention.png")
    shown = [f"the attention: {workdir}/{picture.name}"] if picture else []
    command = f"use it: python -m zoo translate {workdir} {shlex.quote(texts[0][0])}"
    return "\n".join(["samples:", *lines, *shown, command])


def draw(run: Run, dataset: Dataset, options: Options, task: Any) -> pathlib.Path:
    """Draws the pictures and the page of a run of pairs, whose `task` is Translation; returns the page's path."""
    split = getattr(dataset, options.split) or dataset.validation
    if split is None:
        raise ZooError(f"{dataset.name} has no split {options.split}")
    texts = split.texts[:TEXTS]
    inputs: Any = run.inputs
    references = [right for _, right in texts]
    decoded = task.translations(run, [source for source, _ in texts])
    by_character = inputs.by_character or spaceless(references)
    output = options.make_output()
    pairs = [(units(a, by_character), units(right, by_character)) for a, (_, right) in zip(decoded, texts, strict=True)]
    edits = np.array([edit_distance(*pair) for pair in pairs])
    sizes = np.array([len(right) for _, right in pairs])
    pictures = {CURVES: draw_curves(options.folder(), task.metric, output / f"{CURVES}.png")}
    if picture := draw_attention(run, texts, decoded, output / f"{ATTENTION}.png"):
        pictures[ATTENTION] = picture
    lengths = split.arrays["source_length"][: len(texts)]
    pictures[LENGTHS] = draw_lengths(lengths, edits, sizes, by_character, output / f"{LENGTHS}.png")
    whole = quality(decoded, references, by_character, task.spacy_language, task.bleu_tokenizer)
    summary = f"{dataset.name}: {len(texts):,} pairs of {options.split}, "
    summary += ", ".join(f"{name} {value:.4f}" for name, value in whole.items())
    summary += f" (BLEU: {task.signature(references)})"
    worst = np.argsort(-edits / sizes, kind="stable")[: options.number]
    rows = [(*texts[i], decoded[i], f"{edits[i]}") for i in worst if edits[i]]
    return write_page(options, summary, pictures, CAPTIONS, table(rows))


def draw_attention(run: Run, texts: Sequence[Pair], decoded: Sequence[str], path: pathlib.Path) -> pathlib.Path | None:
    """A picture of the first sources and their decoded targets; None for a model without attention."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    inputs: Any = run.inputs
    drawn = [(source, target) for (source, _), target in zip(texts, decoded, strict=True) if target.strip()][:PICTURES]
    try:
        rows = [(inputs.encode(source), inputs.tokens(inputs.target, target)) for source, target in drawn]
        weights = [attention(run, source, target[: inputs.target.length]) for source, target in rows]
    except ZooError:  # as of Sutskever's
        return None
    if not drawn:
        return None
    figure, axes = plt.subplots(1, len(drawn), figsize=(5 * len(drawn), 5), layout="constrained", squeeze=False)
    for axis, (source, target), array in zip(axes[0], drawn, weights, strict=True):
        axis.imshow(array, cmap="Greys", vmin=0, aspect="auto")
        columns = inputs.pieces(inputs.source, inputs.encode(source))
        rows = inputs.pieces(inputs.target, inputs.tokens(inputs.target, target))[: len(array)]
        turned = 90 if max(map(len, columns[:-1]), default=0) > 1 else 0
        axis.set_xticks(range(len(columns)), columns, rotation=turned, fontsize=8, parse_math=False)
        axis.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    return save(figure, path)


def draw_lengths(
    lengths: np.ndarray, edits: np.ndarray, sizes: np.ndarray, by_character: bool, path: pathlib.Path
) -> pathlib.Path:
    """Edits per unit of the references, in groups of pairs of similar length."""
    import matplotlib.pyplot as plt

    groups = np.array_split(np.argsort(lengths, kind="stable"), min(BINS, len(lengths)))
    names = [f"{lengths[g].min()}-{lengths[g].max()}" for g in groups]
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.bar(range(len(groups)), [edits[g].sum() / sizes[g].sum() for g in groups])
    axis.set_xticks(range(len(groups)), names)
    axis.set(xlabel="tokens of the source", ylabel=f"edits per {'character' if by_character else 'word'}")
    return save(figure, path)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """The worst targets as an HTML table."""
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    head = "<tr><th>source</th><th>reference</th><th>decoded</th><th>edits</th></tr>"
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h2>Worst targets</h2><table border=1 cellpadding=4 style='border-collapse:collapse'>{head}{body}</table>"
