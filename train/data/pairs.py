"""Pairs of a source and a target: dates or docstrings (built in), TFDS, a table, or two files line for line."""

import dataclasses
import pathlib
import warnings
from typing import TYPE_CHECKING

import numpy as np

from train.data import dates, stdlib, tfds
from train.data.dataset import ArraySplit, Dataset
from train.data.text import SPLIT_FILES, read_text
from zoo.errors import ZooError
from zoo.inputs.pairs import Pair, PairInputs, learn_pairs
from zoo.inputs.text import padded

if TYPE_CHECKING:
    from train.config import PairsConfig


@dataclasses.dataclass(frozen=True)
class PairSplit(ArraySplit):
    """Arrays `source`, `target` int32 [n, T] and `source_length`, `length` (the target's) int32 [n]; and the texts."""

    texts: list[Pair]
    unit = "pairs"


def load_pairs(config: "PairsConfig", inputs: PairInputs | None = None) -> Dataset:
    """Pairs of the settings, in the tokens of `inputs` if given, else of vocabularies learnt of the training split.

    Lengths that the settings leave open are those of the longest pair. Training pairs that are longer than the settings
    say are left out, with a warning; held-out ones are a ZooError, since all of them count.
    """
    name, splits = read_pairs(config)
    if "validation" not in splits:
        held = int(len(splits["train"]) * config.validation_fraction)
        cut = len(splits["train"]) - held
        splits = {**splits, "train": splits["train"][:cut], "validation": splits["train"][cut:]}
    learnt = inputs or learn_pairs(
        splits["train"], (config.source_tokenizer, config.target_tokenizer), config.vocab_size, (0, 0),
        config.shared_vocabulary, config.lowercase,
    )  # fmt: skip
    sides = (learnt.source, learnt.target)
    rows = {s: [[learnt.tokens(*part) for part in zip(sides, p, strict=True)] for p in ps] for s, ps in splits.items()}
    if inputs is None:
        asked = config.source_length, config.target_length
        everything = [pair for pairs in rows.values() for pair in pairs]
        lengths = [asked[side] or max(len(pair[side]) for pair in everything) for side in (0, 1)]
        source, target = (dataclasses.replace(side, length=n) for side, n in zip(sides, lengths, strict=True))
        inputs = PairInputs(source, target, learnt.lowercase)
    arrays = {split: _split(inputs, split, splits[split], pairs) for split, pairs in rows.items() if pairs}
    return Dataset(name, arrays["train"], arrays.get("validation"), arrays.get("test"), inputs)


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


def read_pairs(config: "PairsConfig") -> tuple[str, dict[str, list[Pair]]]:
    """A name, and the pairs of each split."""
    if config.path is not None:
        path = pathlib.Path(config.path)
        if config.target_path is not None:
            return path.name, {"train": read_lines(path, pathlib.Path(config.target_path))}
        return path.resolve().name, read_table(path)
    if config.name == "dates":
        pairs = {s: [dates.example(config.seed, s, k) for k in range(size)] for s, size in dates.SIZES.items()}
        return f"dates of seed {config.seed}", pairs
    if config.name == "docstrings":
        return stdlib.load_docstrings()
    return config.name, tfds.load_pairs(config.name, config.tfds_dir(), config.source, config.target)


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
