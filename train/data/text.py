"""Texts as tokens: one long stream a split for language models, labelled pieces for classifiers.

From the standard library's sources (built in), from a file or a folder of files, or from TFDS. What is learnt of a
text, the vocabulary, is learnt of the training split, but for characters, of which those of all splits belong to it.
"""

import csv
import dataclasses
import inspect
import itertools
import pathlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from train.data import stdlib, tfds
from train.data.dataset import Arrays, ArraySplit, Dataset, hold_out
from zoo.errors import ZooError
from zoo.inputs.text import TextInputs, learn

if TYPE_CHECKING:
    from train.config import LabelledTextConfig, TextConfig

SPLIT_FILES = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Stream:
    """One long text: `tokens` [N], read in windows of `window` targets; `characters` [V] a token.

    Where documents are packed, `begins` are the places at which they begin, the first of them 0.
    """

    tokens: np.ndarray
    window: int
    characters: np.ndarray
    begins: np.ndarray | None = None
    in_memory = True

    @property
    def size(self) -> int:
        """Symbols that have one before them, from which to tell them."""
        return len(self.tokens) - (1 if self.begins is None else len(self.begins))

    def read(self, starts: np.ndarray) -> Arrays:
        """Windows that begin at `starts` [n], around the text's end to its beginning: `tokens` and `targets` int32
        [n, window], `characters` float32 of the targets, and their `weight` float32.

        Of packed documents also `segments` int32 [n, window], a document's number; the weight of a document's first
        token, of which nothing tells, is 0.
        """
        places = starts[:, None] % len(self.tokens) + np.arange(self.window + 1)
        laps, within = np.divmod(places, len(self.tokens))
        rows = self.tokens[within].astype(np.int32)
        batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "characters": self.characters[rows[:, 1:]]}
        if self.begins is None:
            return {**batch, "weight": np.ones(batch["targets"].shape, np.float32)}
        numbers = (laps * len(self.begins) + np.searchsorted(self.begins, within, side="right")).astype(np.int32)
        weight = (numbers[:, 1:] == numbers[:, :-1]).astype(np.float32)
        return {**batch, "weight": weight, "segments": numbers[:, :-1]}

    def sample(self) -> Arrays:
        return {"tokens": self.tokens} if self.begins is None else {"tokens": self.tokens, "begins": self.begins}


def load_stream(config: "TextConfig", inputs: TextInputs | None = None) -> Dataset:
    """Streams of the settings' text, in the tokens of `inputs` if given, else of a vocabulary learnt here."""
    name, texts = _texts(config)
    if not config.packed:
        texts = {split: ["\n".join(documents)] for split, documents in texts.items()}
    if inputs is None:
        learnt_from = itertools.chain(*texts.values()) if config.tokenizer == "char" else texts["train"]
        inputs = learn(config.tokenizer, learnt_from, config.vocab_size, config.context)
    if "validation" not in texts:
        train, validation = _cut(texts["train"], config.validation_fraction)
        texts = {**texts, "train": train, "validation": validation}
    streams = {}
    for split, documents in texts.items():
        stream = _stream(documents, config, inputs)
        if split == "train" and stream.size < 1:
            raise ZooError(f"{name} has {len(stream.tokens)} tokens to train on, too few to tell one from another")
        if stream.size > 0:
            streams[split] = stream
    return Dataset(name, streams["train"], streams.get("validation"), streams.get("test"), inputs)


def _stream(documents: list[str], config: "TextConfig", inputs: TextInputs) -> Stream:
    """The documents end to end; where they are not packed, there is one."""
    dtype = np.uint16 if inputs.vocab_size <= 1 << 16 else np.int32
    pieces = [piece for document in documents if len(piece := inputs.encode(document).astype(dtype))]
    begins = np.cumsum([0, *map(len, pieces)])[:-1]
    tokens = np.concatenate([np.zeros(0, dtype), *pieces])
    return Stream(tokens, config.context, inputs.characters, begins if config.packed else None)


def _cut(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Documents without the last `fraction` of their characters, and that part; the one in which it begins is cut."""
    total = sum(map(len, documents))
    left, first, last = total - int(total * fraction), [], []
    for document in documents:
        first.append(document[:left])
        last.append(document[left:])
        left = max(left - len(document), 0)
    return first, last


def check_packed(config: "TextConfig", model: type) -> None:
    """ZooError for a model that cannot keep packed documents apart."""
    if config.packed and "segments" not in inspect.signature(model.__call__).parameters:
        raise ZooError(f"{model.__name__} takes no segments, so it cannot keep documents apart; set data.packed false")


def load_labelled(config: "LabelledTextConfig", inputs: TextInputs | None = None) -> Dataset:
    """Labelled texts of the settings, in the tokens of `inputs` if given, else of a vocabulary learnt here."""
    name, splits, labels = _labelled_texts(config)
    if inputs is None:
        learnt = splits if config.tokenizer == "char" else ["train"]
        learnt_from = [text for split in learnt for text, _ in splits[split]]
        inputs = learn(config.tokenizer, learnt_from, config.vocab_size, config.context, labels)
    arrays = {}
    for split, pairs in splits.items():
        encoded = inputs.batch([text for text, _ in pairs])
        arrays[split] = ArraySplit({**encoded, "label": np.array([label for _, label in pairs], np.int32)})
    train, validation = arrays["train"], arrays.get("validation")
    if validation is None:
        train, validation = hold_out(train, config.validation_fraction)
    return Dataset(name, train, validation, arrays.get("test"), inputs)


def _texts(config: "TextConfig") -> tuple[str, dict[str, list[str]]]:
    """A name, and the documents of each split."""
    if config.path is not None:
        path = pathlib.Path(config.path)
        return path.resolve().name, read_folder(path) if path.is_dir() else {"train": [read_text(path)]}
    if config.name == "stdlib":
        name, modules = stdlib.load()
        parts = {"train": stdlib.TRAIN, "validation": stdlib.VALIDATION}
        return name, {split: [modules[module] for module in part] for split, part in parts.items()}
    return config.name, tfds.load_texts(config.name, config.tfds_dir())


def _labelled_texts(config: "LabelledTextConfig") -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
    """A name, the pairs of text and label of each split, the labels' names."""
    if config.path is not None:
        return read_table(pathlib.Path(config.path))
    if config.name == "stdlib":
        name, modules = stdlib.load()
        labels = [*stdlib.TRAIN, *stdlib.VALIDATION]
        splits: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
        for label, module in enumerate(labels):
            for split, snippet in snippets(modules[module], config.context):
                splits[split].append((snippet, label))
        return name, splits, labels
    return tfds.load_labelled_texts(config.name, config.tfds_dir())


def snippets(text: str, length: int) -> list[tuple[str, str]]:
    """Pieces of a text by split: of the first 80 % for training, each half over the one before; of the next and
    the last 10 % for validation and test, end to end."""
    ends = {"train": int(0.8 * len(text)), "validation": int(0.9 * len(text)), "test": len(text)}
    pieces, start = [], 0
    for split, end in ends.items():
        stride = max(length // 2, 1) if split == "train" else length
        pieces += [(split, text[i : i + length]) for i in range(start, end - length + 1, stride)]
        start = end
    return pieces


def read_text(path: pathlib.Path) -> str:
    """A file's text; ZooError where it is missing, empty or not UTF-8."""
    if not path.is_file():
        raise ZooError(f"data.path {str(path)!r} is no file or folder")
    raw = path.read_bytes()
    if not raw.strip():
        raise ZooError(f"{str(path)!r} is empty")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZooError(f"{str(path)!r} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start:,}") from None
    if "\0" in text:
        raise ZooError(f"{str(path)!r} is not text: it has a zero byte at {raw.index(0):,}")
    return text.replace("\r\n", "\n")


def read_folder(folder: pathlib.Path) -> dict[str, list[str]]:
    """The texts of all files under a folder, in the order of their paths, by split.

    Folders and files at its top that are named train, validation (or dev) and test are splits, or without a train all
    is train. What is hidden is passed over; what is empty or not UTF-8 is left out with a warning. ZooError where no
    text is left.
    """
    texts: dict[str, list[str]] = {}
    files, wrong = [(path, path.relative_to(folder).parts) for path in sorted(folder.rglob("*")) if path.is_file()], []
    shown = [(path, parts) for path, parts in files if not any(part.startswith(".") for part in parts)]
    tops = [parts[0] if len(parts) > 1 else path.stem for path, parts in shown]
    for (path, _), top in zip(shown, tops, strict=True):
        split = SPLIT_FILES.get(top) if "train" in tops else "train"
        if split is not None:
            try:
                texts.setdefault(split, []).append(read_text(path))
            except ZooError:
                wrong.append(path)
    if not texts.get("train"):
        raise ZooError(f"{str(folder)!r} has no text to train on: no file that is UTF-8, not empty and not hidden")
    if wrong:
        warnings.warn(f"left out {len(wrong)} files, empty or not UTF-8 text, such as {str(wrong[0])!r}", stacklevel=2)
    return texts


def read_table(path: pathlib.Path) -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
    """Name, pairs by split and labels of a TSV file, or of a folder of train.tsv, validation.tsv or dev.tsv, test.tsv.

    Columns are text and label; a first line that names them may put them in another order (`sentence` or `text`, and
    `label`), and a file whose first line names a text but no label is left out.
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
        strangers = sorted({label for _, label in rows} - set(labels))
        if strangers:
            raise ZooError(f"{str(files[split])!r} has labels that train does not have: {', '.join(strangers[:8])}")
    numbered = {label: i for i, label in enumerate(labels)}
    return path.name, {s: [(text, numbered[label]) for text, label in rows] for s, rows in tables.items()}, labels


def _rows(file: pathlib.Path) -> list[tuple[str, str]] | None:
    """Pairs of text and label; None where the first line says that there are no labels."""
    rows = list(csv.reader(read_text(file).split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))
    text, label = 0, 1
    header = [name.strip().lower() for name in rows[0]]
    if "sentence" in header or "text" in header:
        text = header.index("sentence" if "sentence" in header else "text")
        if "label" not in header:
            return None
        label, rows = header.index("label"), rows[1:]
    pairs = []
    for number, row in enumerate(rows, start=1):
        if row:
            if len(row) <= max(text, label):
                raise ZooError(f"{str(file)!r}: row {number} has {len(row)} columns, not a text and a label by a tab")
            pairs.append((row[text], row[label].strip()))
    return pairs
