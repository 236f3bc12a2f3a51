"""Text for language models: the standard library's sources (built in), a file or a folder of files, or TFDS."""

import dataclasses
import inspect
import itertools
import pathlib
import warnings
from typing import Any

import flax.linen as nn
import numpy as np

from train.data import stdlib, tfds
from train.data.source import Dataset, TfdsSource
from train.data.streams import Stream
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.text import TextInputs, learn

SPLIT_FILES = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class TokenizedData(TfdsSource, abstract=True):
    """Settings of all texts that one tokenizer reads.

    A vocabulary is learned from the training split alone, except that of characters, which has those of all splits.
    """

    name: str = "stdlib"  # the standard library's sources (built in), or any text set of TFDS
    path: str | None = None  # UTF-8 text instead of a name: a file, or a folder of files
    tokenizer: str = "char"  # char, byte, bpe, word, wordpiece, unigram; or a tokenizer.json, or its folder
    vocab_size: int = 4096  # the most tokens of a learned vocabulary
    context: int = 64  # tokens in an example

    def check(self) -> None:
        super().check()
        at_least("data.context", self.context, 1)
        at_least("data.vocab-size", self.vocab_size, 2)


@dataclasses.dataclass(frozen=True)
class TextData(TokenizedData):
    """Text read as one long stream, or as packed documents. Back-propagation reaches back `context` tokens."""

    packed: bool = False  # documents (a folder's files, a set's texts) share examples but see nothing of one another

    def check_model(self, model: type[nn.Module]) -> None:
        if self.packed and "segments" not in inspect.signature(model.__call__).parameters:
            raise ZooError(
                f"{model.__name__} takes no segments, so it cannot keep documents apart; set data.packed false"
            )

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        known: TextInputs | None = self.inputs_of_kind(inputs, "text")
        name, texts = self._texts()
        if not self.packed:
            texts = {split: ["\n".join(documents)] for split, documents in texts.items()}
        if known is None:
            corpus = itertools.chain(*texts.values()) if self.tokenizer == "char" else texts["train"]
            known = learn(self.tokenizer, corpus, self.vocab_size, self.context)
        if "validation" not in texts:
            train, validation = _cut(texts["train"], self.validation_fraction)
            texts = {**texts, "train": train, "validation": validation}
        streams = {}
        for split, documents in texts.items():
            stream = self._stream(documents, known)
            if split == "train" and stream.size < 1:
                raise ZooError(f"{name} has {len(stream.tokens)} tokens to train on; at least two are needed")
            if stream.size > 0:
                streams[split] = stream
        return Dataset(name, streams["train"], streams.get("validation"), streams.get("test"), known)

    def _texts(self) -> tuple[str, dict[str, list[str]]]:
        """A name, and the documents of each split."""
        if self.path is not None:
            path = pathlib.Path(self.path)
            return path.resolve().name, read_folder(path) if path.is_dir() else {"train": [read_text(path)]}
        if self.name == "stdlib":
            name, modules = stdlib.load()
            parts = {"train": stdlib.TRAIN, "validation": stdlib.VALIDATION}
            return name, {split: [modules[module] for module in part] for split, part in parts.items()}
        return self.name, tfds.load_texts(self.name, self.tfds_dir())

    def _stream(self, documents: list[str], inputs: TextInputs) -> Stream:
        """The documents end to end; without packing there is one."""
        dtype: Any = np.uint16 if inputs.vocab_size <= 1 << 16 else np.int32
        pieces = [piece for document in documents if len(piece := inputs.encode(document).astype(dtype))]
        begins = np.cumsum([0, *map(len, pieces)])[:-1]
        tokens = np.concatenate([np.zeros(0, dtype), *pieces])
        return Stream(tokens, self.context, inputs.characters, begins if self.packed else None)


def _cut(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Documents without the last `fraction` of their characters, and that part; the one in which it begins is cut."""
    total = sum(map(len, documents))
    left, first, last = total - int(total * fraction), [], []
    for document in documents:
        first.append(document[:left])
        last.append(document[left:])
        left = max(left - len(document), 0)
    return first, last


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

    Folders and files at its top that are named train, validation (or dev) and test are splits; without a train, all
    is train. Hidden files are skipped; files that are empty or not UTF-8 are left out with a warning. ZooError where no
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
