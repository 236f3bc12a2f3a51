"""Tables of text, TSV and CSV: their rows, their header, and the columns that settings name."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Collection

import numpy as np

from train.data.files import lines_of, read_text, warn_left_out
from train.data.splits import split_of
from zoo.errors import ZooError

DELIMITERS = ",;\t"  # of a .csv, in the order in which they are tried
Rows = list[tuple[int, list[str]]]  # the line of the file in which a row begins, and its cells


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file with their line numbers, all of one `width`."""

    path: pathlib.Path
    rows: Rows

    @property
    def width(self) -> int:
        return len(self.rows[0][1])

    @property
    def names(self) -> list[str]:
        """The cells of the first row, as names of columns are compared: lower case, without space around them."""
        return [cell.strip().lower() for cell in self.rows[0][1]]

    def place(self, column: str) -> int:
        """The place of a column, given by its name in the first row or by its number from 1; ZooError without it."""
        if column.isdecimal() and 1 <= int(column) <= self.width:
            return int(column) - 1
        if column.strip().lower() in self.names and not column.isdecimal():
            return self.names.index(column.strip().lower())
        first = " | ".join(self.rows[0][1])
        raise ZooError(f"{str(self.path)!r} has no column {column!r}; its first row is {first:.120}")


def read_table(path: pathlib.Path) -> Table:
    """A table whose cells are separated by a tab; of a `.csv` by a comma, or else a semicolon, or a tab.

    Cells of a `.csv` may be quoted (RFC 4180); those of other files where the file cannot be read otherwise, or where
    its quotes are doubled. Empty rows are left out. ZooError for a row of another width than the first, by the number
    of its line.
    """
    text = read_text(path)
    rows = _csv(text, path) if path.suffix.lower() == ".csv" else _tsv(text)
    if not rows:
        raise ZooError(f"{str(path)!r} is empty")
    table = Table(path, rows)
    for line, cells in rows:
        if len(cells) != table.width:
            what = f"row {line} has {len(cells)} columns, not {table.width} as row {rows[0][0]}"
            raise ZooError(f"{str(path)!r}: {what}: {cells!r:.80}")
    return table


def _csv(text: str, path: pathlib.Path) -> Rows:
    """Rows by the first delimiter that gives each of them the same number of cells, two or more; else by commas."""
    found: list[Rows | csv.Error] = []
    for delimiter in DELIMITERS:
        try:
            found.append(rows := _quoted(text, delimiter))
            if _even(rows):
                return rows
        except csv.Error as error:
            found.append(error)
    if isinstance(found[0], csv.Error):
        raise ZooError(f"{str(path)!r} is not a CSV: {found[0]}")
    return found[0]


def _tsv(text: str) -> Rows:
    """Rows by tabs, without empty ones; quotes are characters like others, unless they are those of a quoted table."""
    rows = [(number, line.split("\t")) for number, line in enumerate(lines_of(text), start=1)]
    rows = [(number, cells) for number, cells in rows if any(map(str.strip, cells))]
    if '"' in text and (not _even(rows) or _looks_quoted(rows)):
        try:
            quoted = _quoted(text, "\t")
        except csv.Error:
            return rows
        if _even(quoted):
            return quoted
    return rows


def _quoted(text: str, delimiter: str) -> Rows:
    """Rows of cells that may be quoted, without empty ones; csv.Error, with the row, where quotes are not a CSV's."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    text = text.replace("\r", "\0" if "\n" in text else "\n")  # a CR within a cell is none of csv's line ends
    reader, rows, line = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), [], 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((line, [cell.replace("\0", "\r") for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"row {line}: {error}") from None
    return rows


def _even(rows: Rows) -> bool:
    """Whether all rows have the same number of cells, two or more."""
    widths = {len(cells) for _, cells in rows}
    return len(widths) == 1 and min(widths) > 1


def _looks_quoted(rows: Rows) -> bool:
    """Whether quotes are doubled within a quoted cell, or every cell of a column is quoted."""
    quoted = [[len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells] for _, cells in rows]
    doubled = [['""' in cell[1:-1] for cell in cells] for _, cells in rows]
    return any(map(all, zip(*quoted, strict=True))) or bool(np.any(np.logical_and(quoted, doubled)))


def table_files(path: pathlib.Path, hint: str = "") -> dict[str, pathlib.Path]:
    """The table of each split: the file itself is train's; of a folder those that are named after splits.

    The folder's other files are left out with a warning. ZooError where it has no train, or two files of a split, which
    the `hint` explains.
    """
    if not path.is_dir():
        return {"train": path}
    files: dict[str, pathlib.Path] = {}
    left = []
    for file in sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")):
        split = split_of(file.name)
        if split is None:
            left.append(file)
        elif split in files:
            both = f"{files[split].name} and {file.name}"
            raise ZooError(f"{str(path)!r} has two tables of the split {split}: {both}{hint}")
        else:
            files[split] = file
    if "train" not in files:
        raise ZooError(f"{str(path)!r} has no train.tsv or train.csv")
    warn_left_out(left, "in no split (train, validation, test)")
    return files


def recognised(table: Table, names: Collection[str]) -> list[int]:
    """The places of the columns whose name in the first row is one of `names`."""
    return [place for place, name in enumerate(table.names) if name in names]
