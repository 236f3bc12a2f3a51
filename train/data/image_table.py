"""A CSV table of image files and their labels, and the splits that it gives, if it does."""

import csv
import hashlib
import io
import itertools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from train.data.files import read_text
from train.data.image_source import Found
from train.data.labels import plain
from train.data.pictures import StoredPictures, headers_of
from train.data.splits import SPLITS, split_of
from zoo.errors import ZooError, unknown

FILE = ("file", "path", "image", "filename", "file_name", "image_path", "filepath")
LABEL = ("label", "class", "category")
SUFFIXES = (".csv", ".tsv", ".txt")
Rows = list[dict[str, str]]


def load(path: str, known: Collection[str] = (), replaced: Collection[str] = ()) -> Found:
    """The pictures of a table with a label each: columns file (or path, image, filename), label (or class), split.

    Files are relative to the table. Rows are ordered by a hash of their file, so that any part of them is a mixture.
    """
    table, rows = _read(path)
    file, label = _column(rows, FILE), _column(rows, LABEL)
    if label is None and file is not None and "labels" in rows[0]:
        if any(";" in row["labels"] for row in rows):
            raise ZooError(
                f"{str(table)!r} has several labels in a row: the source is MultiLabelData, as in the recipe "
                "digit-scenes; one label each is for ImageData"
            )
        label = "labels"
    if file is None or label is None:
        raise ZooError(f"{str(table)!r} must have the columns file and label, and a row; it has {_columns(rows)}")
    rows.sort(key=lambda row: hashlib.sha256(row[file].encode("utf-8", "surrogatepass")).digest())
    named = [plain(row[label]) for row in rows]
    splits = _splits(table, rows)
    labels = sorted({named[i] for i in (range(len(rows)) if known else splits["train"])} - {""})
    numbers = {name: number for number, name in enumerate(labels)} | {"": -1}
    if unexpected := sorted({*named} - {*numbers}):
        raise ZooError(f"{str(table)!r} has labels that train does not have: {', '.join(unexpected[:8])}")
    return _found(table, rows, file, splits, labels, np.array([numbers[name] for name in named], np.int32), replaced)


def load_several(path: str, replaced: Collection[str] = ()) -> Found:
    """The pictures of a table with several labels each, separated by semicolons: columns file, labels, split."""
    table, rows = _read(path)
    file, label = _column(rows, FILE), _column(rows, ("labels", *LABEL))
    if file is None or label is None:
        raise ZooError(f"{str(table)!r} must have the columns file and labels, and a row; it has {_columns(rows)}")
    named = [{plain(name) for name in row[label].split(";")} - {""} for row in rows]
    labels = sorted(set().union(*named))
    if not labels:
        raise ZooError(f"{str(table)!r} names no label in its column {label}")
    targets = np.array([[name in some for name in labels] for some in named], np.float32)
    return _found(table, rows, file, _splits(table, rows), labels, targets, replaced)


def _read(path: str) -> tuple[pathlib.Path, Rows]:
    """The table's path and its rows, with column names in lower case."""
    table = pathlib.Path(path).expanduser()
    text = read_text(table)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise ZooError(f"{str(table)!r} is no CSV file: {error}") from None
    names = [name.strip().lower() for name in lines[0]] if lines else []
    if len({*names}) < len(names):
        raise ZooError(f"{str(table)!r} has two columns of one name: {', '.join(names)}")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) > len(names):
            raise ZooError(f"{str(table)!r}: row {number} has {len(line)} columns, not {len(names)}")
    if len(lines) < 2:
        raise ZooError(f"{str(table)!r} must have the columns file and label, and a row; it has {names!r:.80}")
    return table, [dict(itertools.zip_longest(names, line, fillvalue="")) for line in lines[1:]]


def _column(rows: Rows, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in rows[0]), None)


def _columns(rows: Rows) -> str:
    return repr([*rows[0]])[:80]


def _splits(table: pathlib.Path, rows: Rows) -> dict[str, list[int]]:
    """The rows of each split; all are train where the table has no column split."""
    splits: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        given = row.get("split", "").strip()
        split = split_of(given) if given else "train"
        if split is None:
            raise unknown(f"split in {str(table)!r}", given, SPLITS)
        splits.setdefault(split, []).append(number)
    if "train" not in splits:
        raise ZooError(f"{str(table)!r} has no row of the split train")
    return splits


def _found(
    table: pathlib.Path,
    rows: Rows,
    file: str,
    splits: dict[str, list[int]],
    labels: list[str],
    targets: np.ndarray,
    replaced: Collection[str],
) -> Found:
    """The pictures of the rows, without those whose file is no image, which are counted as unreadable."""
    if nameless := next((number for number, row in enumerate(rows, start=1) if not row[file].strip()), None):
        raise ZooError(f"{str(table)!r}: row {nameless} names no file")
    names = [row[file].strip() for row in rows]
    paths = [table.parent / pathlib.Path(name).expanduser() for name in names]
    headers: list[Any] = headers_of(paths)
    unread = {
        name: str(header)
        for name, header in zip(names, headers, strict=True)
        if isinstance(header, ZooError) and name not in replaced
    }
    pictures = {}
    for split in SPLITS:
        if kept := [i for i in splits.get(split, []) if names[i] not in unread]:
            present = [headers[i] for i in kept if not isinstance(headers[i], ZooError)]
            pictures[split] = StoredPictures([paths[i] for i in kept], targets[kept], [names[i] for i in kept], present)
    counts = ", ".join(f"{split} {len(some):,}" for split, some in pictures.items())
    return Found(
        table.stem, pictures, tuple(labels), (f"{str(table)!r}: images of {len(labels)} labels, {counts}",), unread
    )
