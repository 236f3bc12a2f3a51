"""Text for language models: the standard library's sources (built in), a file or a folder of files, or TFDS."""

import dataclasses
import inspect
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from train.data import stdlib, tfds
from train.data.files import read_text, split_names, warn_left_out
from train.data.source import Dataset, TfdsSource
from train.data.streams import Stream
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.text import TextInputs, learn
from zoo.inputs.walk import walk


@dataclasses.dataclass(frozen=True)
class TextSource(TfdsSource, abstract=True):
    """Settings of all sources of texts."""

    test_fraction: float = 0.0  # the end of train that tests, after what validates, where a set has no test split

    def check(self) -> None:
        super().check()
        if not 0 <= self.test_fraction < 1 - self.validation_fraction:
            raise ZooError(
                f"data.test-fraction must be at least 0, and with data.validation-fraction {self.validation_fraction} "
                f"below 1, not {self.test_fraction}"
            )

    def held_out(self, splits: dict[str, Any], cut: Callable[[Any, float], tuple[Any, Any]]) -> dict[str, Any]:
        """Splits with the test and the validation that they lack, cut off the end of train.

        `cut` gives a split without its last fraction, and that part.
        """
        splits, rest = dict(splits), 1.0
        for name, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
            if name not in splits and fraction:
                share = fraction if rest == 1 else fraction / rest + 1e-9  # 0.3 / 0.8 is a little less than it is
                splits["train"], splits[name] = cut(splits["train"], share)
                rest -= fraction
        return splits


@dataclasses.dataclass(frozen=True)
class TokenizedData(TextSource, abstract=True):
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
    newlines: Literal["keep", "unix"] = "keep"  # of files: keep CRLF as it is, or turn it into LF

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
        texts = self.held_out(texts, _cut)
        if known is None:
            corpus = itertools.chain(*texts.values()) if self.tokenizer == "char" else texts["train"]
            known = learn(self.tokenizer, corpus, self.vocab_size, self.context)
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
            path = pathlib.Path(self.path).expanduser()
            if path.is_dir():
                return path.resolve().name, read_folder(path, self.newlines)
            return path.resolve().name, {"train": [read_text(path, self.newlines)]}
        if self.name == "stdlib":
            name, modules = stdlib.load()
            parts = {"train": stdlib.TRAIN, "validation": stdlib.VALIDATION}
            return name, {split: [modules[module] for module in part] for split, part in parts.items()}
        return self.name, tfds.load_texts(self.name, self.tfds_dir())

    def _stream(self, documents: list[str], inputs: TextInputs) -> Stream:
        """The documents end to end; without packing there is one."""
        dtype: Any = np.uint16 if inputs.vocab_size <= 1 << 16 else np.int32
        pieces, characters = [np.zeros(0, dtype)], [np.zeros(0, np.uint8)]
        for tokens, covered in map(inputs.encode_counted, documents):
            if len(tokens):
                pieces.append(tokens.astype(dtype))
                characters.append(covered.astype(np.min_scalar_type(int(covered.max()))))
        begins = np.cumsum([*map(len, pieces)])[:-1]
        return Stream(np.concatenate(pieces), self.context, np.concatenate(characters), begins if self.packed else None)


def _cut(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Documents without the last `fraction` of their characters, and that part; the one in which it begins is cut."""
    total = sum(map(len, documents))
    left, first, last = total - int(total * fraction), [], []
    for document in documents:
        first.append(document[:left])
        last.append(document[left:])
        left = max(left - len(document), 0)
    return first, last


def read_folder(folder: pathlib.Path, newlines: str = "unix") -> dict[str, list[str]]:
    """The texts of all files under a folder, in the order of their paths, by split.

    Folders and files that are named after splits are splits (`train.data.files.split_names`). Hidden files are skipped.
    Files of no split, empty ones and those that are not UTF-8 are left out with a warning. ZooError where no text is
    left, or where there is another split but no train.
    """
    texts: dict[str, list[str]] = {}
    files, wrong, left = {file.parts: folder / file for file in walk(folder).files}, [], []
    for parts, split in split_names(files, repr(str(folder))).items():
        if split is None:
            left.append(files[parts])
            continue
        try:
            texts.setdefault(split, []).append(read_text(files[parts], newlines))
        except ZooError:
            wrong.append(files[parts])
    if not texts.get("train"):
        raise ZooError(f"{str(folder)!r} has no text to train on: no file that is UTF-8, not empty and not hidden")
    warn_left_out(wrong, "empty, or not UTF-8 text")
    warn_left_out(left, "in no split (train, validation, test)")
    return {split: found for split, found in texts.items() if found}
