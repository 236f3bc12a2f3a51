"""Labelled texts: modules of the standard library (built in), a table, or TFDS."""

import dataclasses
import pathlib

import numpy as np

from train.data import stdlib, tfds
from train.data.source import ArraySplit, Dataset, hold_out
from train.data.text import SPLIT_FILES, TokenizedData, read_text
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.text import TextInputs, learn


@dataclasses.dataclass(frozen=True)
class LabelledTextData(TokenizedData):
    """Texts with a label each. A `path` is a table of text and label by a tab, or a folder of such tables."""

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        known: TextInputs | None = self.inputs_of_kind(inputs, "text")
        name, splits, labels = self._labelled_texts()
        if known is None:
            parts = splits if self.tokenizer == "char" else ["train"]
            corpus = [text for split in parts for text, _ in splits[split]]
            known = learn(self.tokenizer, corpus, self.vocab_size, self.context, labels)
        arrays = {}
        for split, pairs in splits.items():
            encoded = known.batch([text for text, _ in pairs])
            arrays[split] = ArraySplit({**encoded, "label": np.array([label for _, label in pairs], np.int32)})
        train, validation = arrays["train"], arrays.get("validation")
        if validation is None:
            train, validation = hold_out(train, self.validation_fraction)
        return Dataset(name, train, validation, arrays.get("test"), known)

    def _labelled_texts(self) -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
        """A name, the pairs of text and label of each split, the labels' names."""
        if self.path is not None:
            return read_table(pathlib.Path(self.path))
        if self.name == "stdlib":
            name, modules = stdlib.load()
            labels = [*stdlib.TRAIN, *stdlib.VALIDATION]
            splits: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
            for label, module in enumerate(labels):
                for split, snippet in snippets(modules[module], self.context):
                    splits[split].append((snippet, label))
            return name, splits, labels
        return tfds.load_labelled_texts(self.name, self.tfds_dir())


def snippets(text: str, length: int) -> list[tuple[str, str]]:
    """Pieces of a text by split: the first 80 % train, in pieces that overlap by half; the next 10 % validate and the
    last 10 % test, in pieces end to end."""
    ends = {"train": int(0.8 * len(text)), "validation": int(0.9 * len(text)), "test": len(text)}
    pieces, start = [], 0
    for split, end in ends.items():
        stride = max(length // 2, 1) if split == "train" else length
        pieces += [(split, text[i : i + length]) for i in range(start, end - length + 1, stride)]
        start = end
    return pieces


def read_table(path: pathlib.Path) -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
    """Name, pairs by split and labels of a TSV file, or of a folder of train.tsv, validation.tsv or dev.tsv, test.tsv.

    Columns are text and label; a first line that names them may put them in another order (`sentence` or `text`, and
    `label`). A file whose first line names a text but no label is left out.
    """
    files = {"train": path}
    if path.is_dir():
        files = {SPLIT_FILES[file.stem]: file for file in sorted(path.glob("*.tsv")) if file.stem in SPLIT_FILES}
        if "train" not in files:
            raise ZooError(f"{str(path)!r} has no train.tsv")
    tables = {split: rows for split, file in files.items() if (rows := _rows(file)) is not None}
    if "train" not in tables:
        raise ZooError(f"{str(files['train'])!r} has no column of labels")
    labels = sorted({label for _, label in tables["train"]})
    if len(labels) < 2:
        raise ZooError(f"{str(files['train'])!r} needs at least two labels; it has {labels}")
    for split, rows in tables.items():
        unexpected = sorted({label for _, label in rows} - set(labels))
        if unexpected:
            raise ZooError(f"{str(files[split])!r} has labels that train does not have: {', '.join(unexpected[:8])}")
    numbered = {label: i for i, label in enumerate(labels)}
    return path.name, {s: [(text, numbered[label]) for text, label in rows] for s, rows in tables.items()}, labels


def _rows(file: pathlib.Path) -> list[tuple[str, str]] | None:
    """Pairs of text and label; None where the header names no label."""
    rows = [line.split("\t") for line in read_text(file).split("\n")]
    text, label = 0, 1
    header = [name.strip().lower() for name in rows[0]]
    if "sentence" in header or "text" in header:
        text = header.index("sentence" if "sentence" in header else "text")
        if "label" not in header:
            return None
        label, rows = header.index("label"), rows[1:]
    pairs = []
    for number, row in enumerate(rows, start=1):
        if row != [""]:
            if len(row) <= max(text, label):
                raise ZooError(f"{str(file)!r}: row {number} has {len(row)} columns, not a text and a label by a tab")
            pairs.append((row[text], row[label].strip()))
    return pairs
