"""Pairs of a source and a target: dates or docstrings (built in), TFDS, a table, or two files line for line."""

import dataclasses
import itertools
import pathlib
import warnings

import numpy as np

from train.data import dates, stdlib, tfds
from train.data.files import read_lines, warn_left_out
from train.data.source import ArraySplit, Dataset
from train.data.splits import split_of
from train.data.tables import Table, read_table, table_files
from train.data.text import TextSource
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.pairs import Pair, PairInputs, learn_pairs
from zoo.inputs.text import padded

LANGUAGES = ("ar", "cs", "de", "en", "es", "fi", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ro", "ru", "tr", "zh")
HEADERS = frozenset(
    {  # the first rows that are names of columns, in lower case
        *(("source", "target"), ("src", "tgt"), ("src", "trg"), ("input", "output"), ("input", "target")),
        *(("question", "answer"), ("prompt", "response"), ("document", "summary"), ("text", "summary")),
        *itertools.permutations(LANGUAGES, 2),
    }
)


@dataclasses.dataclass(frozen=True)
class PairSplit(ArraySplit):
    """Arrays `source`, `target` int32 [n, T] and `source_length`, `length` (the target's) int32 [n]; and the texts."""

    texts: list[Pair]

    @property
    def described(self) -> str:
        return f"{self.size:,} pairs"


@dataclasses.dataclass(frozen=True)
class PairData(TextSource):
    """Pairs of a source and a target."""

    name: str = "dates"  # dates or docstrings (built in), or any set of TFDS with two texts
    # instead of a name: a table of source and target, TSV or CSV; a folder of such tables (train.tsv, validation.tsv,
    # test.tsv) or of files that go line for line (train.de and train.en); or a file of sources, whose targets are the
    # lines of target_path
    path: str | None = None
    target_path: str | None = None
    # such as de and en: the features of a TFDS set, the columns of a table (or their numbers from 1), the last parts of
    # the names of files; default: the set's own choice, a table's two columns
    source: str | None = None
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
        if self.path is not None and (self.source is None) != (self.target is None):
            raise ZooError("data.source and data.target go together where data.path is given")

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """Lengths that the settings leave open are those of the longest pair. Longer training pairs than the settings
        allow are left out, with a warning; longer held-out ones are a ZooError, since all of them count."""
        known: PairInputs | None = self.inputs_of_kind(inputs, "pair")
        name, splits = self._texts()
        splits = self.held_out(splits, _cut)
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

    def _texts(self) -> tuple[str, dict[str, list[Pair]]]:
        """A name, and the pairs of each split."""
        if self.path is not None:
            path = pathlib.Path(self.path).expanduser()
            if self.target_path is not None:
                return path.name, {"train": read_line_pairs(path, pathlib.Path(self.target_path).expanduser())}
            return path.resolve().name, read_path(path, self.source, self.target)
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


def _cut(pairs: list[Pair], fraction: float) -> tuple[list[Pair], list[Pair]]:
    left = len(pairs) - int(len(pairs) * fraction)
    return pairs[:left], pairs[left:]


def read_path(path: pathlib.Path, source: str | None, target: str | None) -> dict[str, list[Pair]]:
    """Pairs by split: of a table, of a folder's tables, or of its files that go line for line.

    `source` and `target` are names or numbers of columns, or the last parts of the names of files.
    """
    if path.is_dir() and source and target and (found := parallel_files(path, source, target)):
        return {split: read_line_pairs(*files) for split, files in found.items()}
    files = table_files(path, "; data.source and data.target are the last parts of such names, as de and en")
    return {split: read_pairs(read_table(file), source, target) for split, file in files.items()}


def read_pairs(table: Table, source: str | None, target: str | None) -> list[Pair]:
    """The pairs of a table's columns `source` and `target`, by default of the two that it has.

    The first row is a header if `source` and `target` are names in it, or if it is made of names that such columns
    commonly have. ZooError for a row with an empty side.
    """
    header = tuple(table.names) in HEADERS
    asked = [side for side in (source, target) if side]
    if asked and (table.width > 2 or all(side.isdecimal() or side.lower() in table.names for side in asked)):
        first, second = map(table.place, asked)
        header = header or not all(map(str.isdecimal, asked))
        if first == second:
            raise ZooError(f"data.source {source!r} and data.target {target!r} are the same column")
    elif table.width != 2:
        raise ZooError(
            f"{str(table.path)!r}: row {table.rows[0][0]} is not a source and a target by a tab: "
            f"{table.rows[0][1]!r:.80}; data.source and data.target name two of several columns"
        )
    else:
        first, second = (1, 0) if not header and tuple(table.names[::-1]) in HEADERS else (0, 1)
        header = header or first == 1
    pairs = []
    for line, row in table.rows[header:]:
        if not (row[first].strip() and row[second].strip()):
            raise ZooError(f"{str(table.path)!r}: row {line} is not a source and a target by a tab: {row!r:.80}")
        pairs.append((row[first], row[second]))
    if not pairs:
        raise ZooError(f"{str(table.path)!r} has no row but its header")
    return pairs


def parallel_files(folder: pathlib.Path, source: str, target: str) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """The files of sources and of targets of each split, as train.de and train.en; none where there is no train."""
    found: dict[str, dict[str, pathlib.Path]] = {}
    left = []
    for file in sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")):
        stem, _, side = file.name.rpartition(".")
        split = split_of(stem)
        if split is None or side not in (source, target):
            left.append(file)
        elif side in found.setdefault(split, {}):
            raise ZooError(
                f"{str(folder)!r} has two files {side} of the split {split}: {found[split][side].name} and {file.name}"
            )
        else:
            found[split][side] = file
    if "train" not in found:
        return {}
    for split, sides in found.items():
        if missing := sorted({source, target} - {*sides}):
            raise ZooError(f"{str(folder)!r} has no file {missing[0]} of the split {split}")
    warn_left_out(left, f"no {source} or {target} of a split (train, validation, test)")
    return {split: (sides[source], sides[target]) for split, sides in found.items()}


def read_line_pairs(source: pathlib.Path, target: pathlib.Path) -> list[Pair]:
    """Pairs of two files, of which line n of the second is the target of line n of the first."""
    first, second = read_lines(source), read_lines(target)
    if len(first) != len(second):
        raise ZooError(
            f"{str(source)!r} has {len(first):,} lines, {str(target)!r} {len(second):,}: they must go line for line"
        )
    for path, lines in ((source, first), (target, second)):
        empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
        if empty is not None:
            raise ZooError(f"{str(path)!r}: line {empty} is empty")
    return list(zip(first, second, strict=True))
