"""Labelled texts: modules of the standard library (built in), a table, or TFDS."""

import collections
import dataclasses
import pathlib
import warnings
from typing import NamedTuple

import numpy as np

from train.data import stdlib, tfds
from train.data.balance import balanced
from train.data.files import warn_left_out
from train.data.labels import numbers_in, plain
from train.data.source import ArraySplit, Dataset, hold_out
from train.data.tables import Table, read_table, recognised, table_files
from train.data.text import TokenizedData
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.text import TextInputs, learn

# What columns of texts and of labels are called, in lower case.
TEXTS = frozenset(
    (
        *("text", "texts", "sentence", "sentences", "review", "reviews", "content", "tweet", "message", "title"),
        *("headline", "comment", "comments", "body", "document", "description", "utterance", "query", "post"),
        *("question", "premise", "hypothesis", "sentence1", "sentence2", "question1", "question2", "text_a", "text_b"),
    )
)
LABELS = frozenset(
    (
        *("label", "labels", "class", "category", "sentiment", "target", "intent", "polarity", "topic", "emotion"),
        *("stars", "rating", "is_duplicate", "gold_label"),
    )
)
NUMBERS = frozenset(("id", "idx", "index", "no", "#", ""))  # of columns that count rows
ASK = "name the columns of text and label with data.columns, or give their numbers"
MOST_LABELS = 50  # of which nearly each row may have its own


class Labelled(NamedTuple):
    """A name; pairs of a text and its label by split; all labels; and what to note."""

    name: str
    splits: dict[str, list[tuple[str, str]]]
    labels: list[str]
    notes: tuple[str, ...] = ()


class Columns(NamedTuple):
    """The places of texts and labels in a table, and whether its first row is a header."""

    text: int
    label: int
    header: bool


@dataclasses.dataclass(frozen=True)
class LabelledTextData(TokenizedData):
    """Texts with a label each. A `path` is a table of text and label, TSV or CSV, or a folder of such tables."""

    # of a table: the columns of the text and of the label, by name or by number from 1; default: those that the first
    # row names, or the two that there are
    columns: list[str] = dataclasses.field(default_factory=list)
    balanced: bool = False  # training batches have every class as often

    def check(self) -> None:
        super().check()
        if len(self.columns) not in (0, 2):
            raise ZooError(f"data.columns must be two, the text's and the label's, not {self.columns}")

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        known: TextInputs | None = self.inputs_of_kind(inputs, "text")
        name, splits, labels, notes = self._labelled_texts(own=not (known and known.labels))
        if known is None:
            parts = splits if self.tokenizer == "char" else ["train"]
            corpus = [text for split in parts for text, _ in splits[split]]
            known = learn(self.tokenizer, corpus, self.vocab_size, self.context, labels)
        elif not known.labels:
            known = dataclasses.replace(known, labels=tuple(labels))
        numbers = dict(zip(labels, numbers_in(known.labels, labels, name), strict=True))
        if len(labels) < len(known.labels):
            notes += (f"{name} has {len(labels)} of the model's {len(known.labels)} labels",)
        arrays = {}
        for split, pairs in splits.items():
            encoded = known.batch([text for text, _ in pairs])
            arrays[split] = ArraySplit({**encoded, "label": np.array([numbers[label] for _, label in pairs], np.int32)})
        arrays = self.held_out(arrays, hold_out)
        train = balanced(arrays["train"], name) if self.balanced else arrays["train"]
        return Dataset(name, train, arrays.get("validation"), arrays.get("test"), known, notes)

    def _labelled_texts(self, own: bool) -> Labelled:
        """The texts, whose labels are their `own` or those of a model."""
        if self.path is not None:
            return read_tables(pathlib.Path(self.path).expanduser(), self.columns, own)
        if self.name == "stdlib":
            name, modules = stdlib.load()
            labels = [*stdlib.TRAIN, *stdlib.VALIDATION]
            splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
            for label in labels:
                for split, snippet in snippets(modules[label], self.context):
                    splits[split].append((snippet, label))
            return Labelled(name, splits, labels)
        name, numbered, labels = tfds.load_labelled_texts(self.name, self.tfds_dir())
        if bare := [split for split, pairs in numbered.items() if any(number < 0 for _, number in pairs)]:
            raise ZooError(f"{name} has texts without a label in its split {bare[0]}")
        splits = {split: [(text, labels[number]) for text, number in pairs] for split, pairs in numbered.items()}
        return Labelled(name, splits, labels)


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


def read_tables(path: pathlib.Path, columns: list[str], own: bool = True) -> Labelled:
    """The texts and labels of a table, or of a folder's tables, one a split (`train.tsv`, `dev.tsv`, `test.csv`).

    `columns_of` finds the columns. A test table without labels is left out with a warning. ZooError where the columns
    are not clear; and where the labels are the table's `own`, for fewer than two, and for labels that train does not
    have.
    """
    files = table_files(path)
    splits: dict[str, list[tuple[str, str]]] = {}
    notes: list[str] = []
    headers: dict[str, bool] = {}
    for split, file in files.items():
        table = read_table(file)
        places = columns_of(table, columns, may_lack_labels=split == "test")
        rows = [] if places is None else _pairs(table, places)
        if places is None or (split == "test" and {label for _, label in rows} == {"-1"}):
            warn_left_out([file], "it has no labels")
            continue
        splits[split], headers[split] = rows, places.header
        if places.header:
            names = table.rows[0][1]
            notes.append(f"{file.name}: texts from column {names[places.text]!r}, labels from {names[places.label]!r}")
    labels = {split: {label for _, label in rows} for split, rows in splits.items()}
    if own:
        _check_labels(files["train"], splits["train"], headers["train"], bool(columns))
        for split, found in labels.items():
            if unexpected := sorted(found - labels["train"]):
                raise ZooError(
                    f"{str(files[split])!r} has labels that train does not have: {', '.join(unexpected[:8])}"
                )
    return Labelled(path.resolve().name, splits, sorted(set().union(*labels.values())), tuple(notes))


def columns_of(table: Table, asked: list[str], may_lack_labels: bool = False) -> Columns | None:
    """The columns of texts and labels: those that are asked for, or that the first row names, or the two there are.

    A first row is a header if it names one column of texts and one of labels (one of them, of two columns), or has a
    name that is asked for. None for a table without labels, where that may be.
    """
    where = repr(str(table.path))
    if asked:
        try:
            text, label = map(table.place, asked)
        except ZooError:
            if may_lack_labels:
                return None
            raise
        if text == label:
            raise ZooError(f"data.columns {' '.join(asked)} are one column of {where}")
        by_name = not all(column.isdecimal() for column in asked)
        return Columns(text, label, by_name or (table.names[text] in TEXTS and table.names[label] in LABELS))
    texts, labels = recognised(table, TEXTS), [i for i in recognised(table, LABELS) if not _again(table, i)]
    if len(labels) == 1 and not texts and table.width == 2 and table.names[1 - labels[0]] not in NUMBERS:
        texts = [1 - labels[0]]
    if len(texts) == len(labels) == 1:
        return Columns(texts[0], labels[0], header=True)
    if texts and not labels:
        if may_lack_labels:
            return None
        raise ZooError(f"{where} has no column of labels: its first row is {' | '.join(table.rows[0][1]):.120}; {ASK}")
    if table.width == 1:
        by = "comma" if table.path.suffix.lower() == ".csv" else "tab"
        raise ZooError(f"{where}: row {table.rows[0][0]} has 1 columns, not a text and a label by a {by}")
    if texts or labels or table.width > 2:
        raise ZooError(f"{where} has {table.width} columns: {' | '.join(table.rows[0][1]):.120}; {ASK}")
    return Columns(0, 1, header=False)


def _again(table: Table, place: int) -> bool:
    """Whether what the first row has in a column stands there again, so that it is no name."""
    return table.names[place] in (row[place].strip().lower() for _, row in table.rows[1:])


def _pairs(table: Table, columns: Columns) -> list[tuple[str, str]]:
    """Pairs of a text and a label; ZooError for a row without a label."""
    pairs = []
    for line, row in table.rows[columns.header :]:
        label = plain(row[columns.label])
        if not label:
            raise ZooError(f"{str(table.path)!r}: row {line} has no label: {row!r:.80}")
        pairs.append((row[columns.text], label))
    if not pairs:
        raise ZooError(f"{str(table.path)!r} has no row but its header")
    return pairs


def _check_labels(path: pathlib.Path, pairs: list[tuple[str, str]], header: bool, asked: bool) -> None:
    """ZooError for fewer than two labels, for so many that they must be texts, and, unless columns are `asked` for, for
    a first row, of a table without a `header`, whose label occurs once, where the others do twice on average."""
    counts = collections.Counter(label for _, label in pairs)
    if len(counts) < 2:
        raise ZooError(f"{str(path)!r} needs at least two labels; it has {sorted(counts)}")
    swapped = len({text for text, _ in pairs}) < len(counts)
    if 2 * len(counts) > len(pairs) and (swapped or len(counts) > MOST_LABELS):
        what = f"{len(counts)} labels in {len(pairs)} rows, such as {min(counts)[:40]!r}"
        raise ZooError(f"{str(path)!r} has {what}; {ASK}")
    first = pairs[0][1]
    if not header and len(counts) > 2 and counts[first] == 1 and len(pairs) - 1 >= 2 * (len(counts) - 1):
        doubt = f"the first row of {str(path)!r} may be a header, since its label {first!r} occurs once"
        if not asked:
            raise ZooError(f"{doubt}; {ASK}")
        warnings.warn(doubt, stacklevel=3)
