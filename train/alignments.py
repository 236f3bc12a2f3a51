"""What a run of pairs says: samples with the attention to their sources, and the report of it.

The attention is of each token of the target that was said to the tokens of the source: a recurrent decoder's, or the
mean over a Transformer's layers and heads.
"""

import html
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from train.config import Config
from train.data import Dataset, Split
from train.data.pairs import PairSplit
from train.pictures import ReportConfig, save, write_page
from train.report import draw_curves
from train.tasks.translation import Translation, edit_distance, quality, units
from zoo.decode import source_attention, translate
from zoo.errors import ZooError
from zoo.inputs.pairs import PairInputs
from zoo.run import Run

SAMPLES, PICTURES, TEXTS, BINS = 8, 4, 2000, 8
CURVES, ATTENTION, LENGTHS = "curves", "attention", "lengths"
CAPTIONS = {
    CURVES: "Learning curves: loss and the share of right tokens by step, each told those before it.",
    ATTENTION: "Attention: of each token that was said (row) to those of the source (column).",
    LENGTHS: "Quality against length: edits a unit of the right targets, by the source's length in tokens.",
}


def sample_pairs(run: Run, config: Config, split: Split, workdir: pathlib.Path) -> str:
    """What a run ends with: samples of a split, the picture of their attention, and the command to go on with."""
    assert isinstance(split, PairSplit)
    texts = split.texts[:SAMPLES]
    said = say(run, config, [source for source, _ in texts])
    wrongs = [f" (right: {right})" if target != right else "" for (_, right), target in zip(texts, said, strict=True)]
    lines = [f"{source} -> {target}{w}" for (source, _), target, w in zip(texts, said, wrongs, strict=True)]
    picture = draw_attention(run, texts, said, workdir / "attention.png")
    shown = [f"the attention: {config.workdir}/{picture.name}"] if picture else []
    command = f"use it: python -m zoo translate {config.workdir} {shlex.quote(texts[0][0])}"
    return "\n".join(["samples:", *lines, *shown, command])


def say(run: Run, config: Config, sources: Sequence[str]) -> list[str]:
    """The best target of each source, by the beam that the settings name."""
    task = config.task
    assert isinstance(task, Translation)
    found = translate(run, sources, beam_size=task.beam_size, length_penalty=task.length_penalty)
    return [best.text for best, *_ in found]


def draw_translations(
    config: ReportConfig, folder: pathlib.Path, settings: Config, run: Run, dataset: Dataset
) -> pathlib.Path:
    """Draws the pictures and the page of a run of pairs; returns the page's path."""
    split = getattr(dataset, config.split) or dataset.validation
    if not isinstance(split, PairSplit) or not isinstance(run.inputs, PairInputs):
        raise ZooError(f"{dataset.name} has no split {config.split}")
    output = pathlib.Path(config.output) if config.output else folder / "report"
    texts = split.texts[:TEXTS]
    said, by_character = say(run, settings, [source for source, _ in texts]), run.inputs.by_character
    output.mkdir(parents=True, exist_ok=True)
    pairs = [(units(a, by_character), units(right, by_character)) for a, (_, right) in zip(said, texts, strict=True)]
    edits = np.array([edit_distance(*pair) for pair in pairs])
    sizes = np.array([len(right) for _, right in pairs])
    pictures = {CURVES: draw_curves(folder, settings.task.metric, output / f"{CURVES}.png")}
    if picture := draw_attention(run, texts, said, output / f"{ATTENTION}.png"):
        pictures[ATTENTION] = picture
    lengths = split.arrays["source_length"][: len(texts)]
    pictures[LENGTHS] = draw_lengths(lengths, edits, sizes, by_character, output / f"{LENGTHS}.png")
    assert isinstance(settings.task, Translation)
    whole = quality(said, [right for _, right in texts], by_character, settings.task.spacy_language)
    summary = f"{dataset.name}: {len(texts):,} pairs of {config.split}, "
    summary += ", ".join(f"{name} {value:.4f}" for name, value in whole.items())
    worst = np.argsort(-edits / sizes, kind="stable")[: config.number]
    rows = [(*texts[i], said[i], f"{edits[i]}") for i in worst if edits[i]]
    return write_page(folder, summary, pictures, CAPTIONS, output / "report.html", table(rows))


def attention(run: Run, source: str, target: str) -> np.ndarray:
    """Of each of a target's tokens to those of a source, float32 [T, S]; ZooError for a model without attention."""
    inputs = run.inputs
    assert isinstance(inputs, PairInputs)
    tokens, targets = inputs.encode(source), inputs.tokens(inputs.target, target)[: inputs.target.length]
    batch = {"source": tokens[None], "source_length": np.array([len(tokens)]), "target": targets[None]}
    args, kwargs = inputs.arguments(batch)
    _, changed = run.model.apply(run.variables, *args, **kwargs, mutable=["features"])
    return np.asarray(source_attention(changed["features"])[0])


def draw_attention(
    run: Run, texts: Sequence[tuple[str, str]], said: Sequence[str], path: pathlib.Path
) -> pathlib.Path | None:
    """A picture each of the first sources and what was said of them; None for a model without attention."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    inputs = run.inputs
    assert isinstance(inputs, PairInputs)
    drawn = [(source, target) for (source, _), target in zip(texts, said, strict=True) if target.strip()][:PICTURES]
    try:
        weights = [attention(run, *pair) for pair in drawn]
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
        axis.set_xticks(range(len(columns)), columns, rotation=turned, fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
    return save(figure, path)


def draw_lengths(
    lengths: np.ndarray, edits: np.ndarray, sizes: np.ndarray, by_character: bool, path: pathlib.Path
) -> pathlib.Path:
    """Edits a unit of the right targets, in groups of pairs of about one length."""
    import matplotlib.pyplot as plt

    groups = np.array_split(np.argsort(lengths, kind="stable"), min(BINS, len(lengths)))
    names = [f"{lengths[g].min()}-{lengths[g].max()}" for g in groups]
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.bar(range(len(groups)), [edits[g].sum() / sizes[g].sum() for g in groups])
    axis.set_xticks(range(len(groups)), names)
    axis.set(xlabel="tokens of the source", ylabel=f"edits a {'character' if by_character else 'word'}")
    return save(figure, path)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """The worst as HTML."""
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    head = "<tr><th>source</th><th>right</th><th>said</th><th>edits</th></tr>"
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h2>The worst</h2><table border=1 cellpadding=4 style='border-collapse:collapse'>{head}{body}</table>"
