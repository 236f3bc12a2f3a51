"""Pairs of a source and a target: dates or docstrings (built in), TFDS, a table, or two files line for line."""

import dataclasses
import pathlib
import warnings

import numpy as np

from train.data import dates, stdlib, tfds
from train.data.source import ArraySplit, Dataset, TfdsSource
from train.data.text import SPLIT_FILES, read_text
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.pairs import Pair, PairInputs, learn_pairs
from zoo.inputs.text import padded


@dataclasses.dataclass(frozen=True)
class PairSplit(ArraySplit):
    """Arrays `source`, `target` int32 [n, T] and `source_length`, `length` (the target's) int32 [n]; and the texts."""

    texts: list[Pair]

    @property
    def described(self) -> str:
        return f"{self.size:,} pairs"


@dataclasses.dataclass(frozen=True)
class PairData(TfdsSource):
    """Pairs of a source and a target."""

    name: str = "dates"  # dates or docstrings (built in), or any set of TFDS with two texts
    # instead of a name: a table of source and target by a tab, a folder of train.tsv, validation.tsv, test.tsv, or a
    # file of sources, whose targets are the lines of target_path
    path: str | None = None
    target_path: str | None = None
    source: str | None = None  # the features of a TFDS set, such as de and en; default: the set's own choice
    target: str | None = None
    source_tokenizer: str = "char"  # char, byte, bpe, unigram, word, wordpiece; or a tokenizer.json, or its folder
    target_tokenizer: str = "char"
    vocab_size: int = 8000  # the most tokens of bpe, unigram, word and wordpiece
    shared_vocabulary: bool = False  # one vocabulary, learned from both sides
    lowercase: bool = False  # both sides in lower case
    source_length: int | None = None  # the most tokens of a source, with its end; default: the longest one's
    target_length: int | None = None
    seed: int = 0  # of dates

    def check(self) -> None:
        super().check()
        at_least("data.vocab-size", self.vocab_size, 2)
        at_least("data.seed", self.seed, 0)
        for name in ("source_length", "target_length"):
            if getattr(self, name) is not None:
                at_least(f"data.{name.replace('_', '-')}", getattr(self, name), 2)
        if self.target_path is not None and self.path is None:
            raise ZooError("data.target-path goes with a data.path of the sources, line for line")

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """Lengths that the settings leave open are those of the longest pair. Longer training pairs than the settings
        allow are left out, with a warning; longer held-out ones are a ZooError, since all of them count."""
        known: PairInputs | None = self.inputs_of_kind(inputs, "pair")
        name, splits = self._pairs()
        if "validation" not in splits:
            held = int(len(splits["train"]) * self.validation_fraction)
            cut = len(splits["train"]) - held
            splits = {**splits, "train": splits["train"][:cut], "validation": splits["train"][cut:]}
        learned = known or learn_pairs(
            splits["train"], (self.source_tokenizer, self.target_tokenizer), self.vocab_size, (0, 0),
            self.shared_vocabulary, self.lowercase,
        )  # fmt: skip
        sides = (learned.source, learned.target)
        rows = {
            split: [[learned.tokens(*part) for part in zip(sides, pair, strict=True)] for pair in pairs]
            for split, pairs in splits.items()
        }
        if known is None:
            asked = self.source_length, self.target_length
            everything = [pair for pairs in rows.values() for pair in pairs]
            lengths = [asked[side] or max(len(pair[side]) for pair in everything) for side in (0, 1)]
            source, target = (dataclasses.replace(side, length=n) for side, n in zip(sides, lengths, strict=True))
            known = PairInputs(source, target, learned.lowercase)
        arrays = {split: _split(known, split, splits[split], pairs) for split, pairs in rows.items() if pairs}
        return Dataset(name, arrays["train"], arrays.get("validation"), arrays.get("test"), known)

    def _pairs(self) -> tuple[str, dict[str, list[Pair]]]:
        """A name, and the pairs of each split."""
        if self.path is not None:
            path = pathlib.Path(self.path)
            if self.target_path is not None:
                return path.name, {"train": read_lines(path, pathlib.Path(self.target_path))}
            return path.resolve().name, read_table(path)
        if self.name == "dates":
            pairs = {s: [dates.example(self.seed, s, k) for k in range(size)] for s, size in dates.SIZES.items()}
            return f"dates of seed {self.seed}", pairs
        if self.name == "docstrings":
            return stdlib.load_docstrings()
        return self.name, tfds.load_pairs(self.name, self.tfds_dir(), self.source, self.target)


def _split(inputs: PairInputs, split: str, texts: list[Pair], rows: list[list[np.ndarray]]) -> PairSplit:
    """The arrays of the pairs that are not too long."""
    longest = inputs.source.length, inputs.target.length
    fits = [len(source) <= longest[0] and len(target) <= longest[1] for source, target in rows]
    wrong = len(rows) - sum(fits)
    what = f"of {len(rows):,} pairs to {split} {wrong:,} are longer than {longest[0]} and {longest[1]} tokens"
    if wrong and split != "train":
        raise ZooError(f"{what}, which all must fit: raise data.source-length and data.target-length")
    if wrong == len(rows):
        raise ZooError(f"{what}, so that none is left")
    if wrong:
        warnings.warn(f"{what} and left out (data.source-length, data.target-length)", stacklevel=3)
    arrays = {}
    for side, (name, length) in enumerate((("source", "source_length"), ("target", "length"))):
        kept = [row[side] for row, fit in zip(rows, fits, strict=True) if fit]
        arrays[name], arrays[length] = padded(kept, longest[side]), np.array([*map(len, kept)], np.int32)
    lower = [(s.lower(), t.lower()) if inputs.lowercase else (s, t) for s, t in texts]
    return PairSplit(arrays, [text for text, fit in zip(lower, fits, strict=True) if fit])


def read_table(path: pathlib.Path) -> dict[str, list[Pair]]:
    """Pairs of a TSV file, source and target by a tab; or a folder's, train.tsv, validation.tsv (or dev), test.tsv."""
    files = {"train": path}
    if path.is_dir():
        files = {SPLIT_FILES[file.stem]: file for file in sorted(path.glob("*.tsv")) if file.stem in SPLIT_FILES}
        if "train" not in files:
            raise ZooError(f"{str(path)!r} has no train.tsv")
    splits = {}
    for split, file in files.items():
        rows = [line.split("\t") for line in _lines(file)]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2 or not all(map(str.strip, row)):
                raise ZooError(f"{str(file)!r}: line {number} is not a source and a target by a tab: {row!r:.80}")
        splits[split] = [(source, target) for source, target in rows]
    return splits


def read_lines(source: pathlib.Path, target: pathlib.Path) -> list[Pair]:
    """Pairs of two files, of which line n of the second is the target of line n of the first."""
    first, second = _lines(source), _lines(target)
    if len(first) != len(second):
        raise ZooError(
            f"{str(source)!r} has {len(first):,} lines, {str(target)!r} {len(second):,}: they must go line for line"
        )
    for path, lines in ((source, first), (target, second)):
        empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
        if empty is not None:
            raise ZooError(f"{str(path)!r}: line {empty} is empty")
    return list(zip(first, second, strict=True))


def _lines(path: pathlib.Path) -> list[str]:
    return read_text(path).removesuffix("\n").split("\n")
