"""Series of numbers: tables to the normalised float32 that a model was trained on, and forecasts back."""

import csv
import dataclasses
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs

MOST_BYTES = 2**30  # of a file, and of its arrays


@dataclasses.dataclass(frozen=True)
class SeriesInputs(Inputs):
    """Rows of `columns`, normalised by the training rows' `mean` and `std`; a model predicts `targets` of them.

    Its output at a row is the targets `horizon` rows later. `length` is the number of rows of a training window.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    horizon: int
    length: int

    kind: ClassVar[str] = "series"
    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]

    def __post_init__(self) -> None:
        for name in ("columns", "targets", "mean", "std"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ZooError(f"{name} must be a list, not {getattr(self, name)!r:.80}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(isinstance(name, str) for name in (*self.columns, *self.targets)) or not {*self.targets} <= {
            *self.columns
        }:
            raise ZooError(f"targets {self.targets!r:.80} must be among the columns {self.columns!r:.80}")
        numbers = (*self.mean, *self.std)
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or min(self.std, default=0) <= 0:
            raise ZooError("mean and std must be finite numbers, std above 0")
        if not len(self.columns) == len(self.mean) == len(self.std):
            raise ZooError(f"mean and std must have a number for each of the {len(self.columns)} columns")
        if not all(type(n) is int and 1 <= n <= 2**20 for n in (self.horizon, self.length)):
            raise ZooError(f"horizon {self.horizon!r} and length {self.length!r} must be whole numbers of at least 1")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.length, len(self.columns))

    @property
    def places(self) -> list[int]:
        """The columns that are targets, by number."""
        return [self.columns.index(name) for name in self.targets]

    def encode(self, raw: Any) -> np.ndarray:
        """A CSV or NPZ file, or an array [T, columns], to float32 [T, columns]; ZooError for another table."""
        if isinstance(raw, str | os.PathLike):
            names, values = read_series(raw)
            if missing := [name for name in self.columns if name not in names]:
                raise ZooError(f"{str(raw)!r} has no column {missing[0]!r}; it has {', '.join(names)}")
            raw = values[:, [names.index(name) for name in self.columns]]
        array = np.asarray(raw, np.float64)
        if array.ndim != 2 or array.shape[1] != len(self.columns) or not np.all(np.isfinite(array)):
            raise ZooError(f"a series must be finite numbers [rows, {len(self.columns)}], not {list(array.shape)}")
        return np.asarray(self.normalize(array), np.float32)

    def normalize(self, values: Any) -> Any:
        """[..., columns] to (x - mean) / std."""
        return (values - np.asarray(self.mean)) / np.asarray(self.std)

    def decode(self, array: Any) -> np.ndarray:
        """A model's output [..., targets] in the units of the table, float64."""
        places = self.places
        return np.asarray(array, np.float64) * np.asarray(self.std)[places] + np.asarray(self.mean)[places]

    def batch(self, raws: Sequence[Any]) -> dict[str, np.ndarray]:
        """Series of one length: `values` float32 [n, T, columns], normalised."""
        return {"values": np.stack([self.encode(raw) for raw in raws])}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of a model for a batch."""
        return (batch["values"],), {}

    def model_args(self) -> dict[str, int]:
        """The fields of a model that follow from its inputs."""
        return {"num_targets": len(self.targets)}

    def example(self) -> Example:
        return (jax.ShapeDtypeStruct((1, *self.shape), np.dtype(np.float32)),), {}


def read_series(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """The column names and the values float64 [T, C] of a table.

    A CSV has a line of names, then numbers; columns that are no numbers, such as dates, are left out. An NPZ has one
    array [T] or [T, C] (columns 0, 1, ...), or several arrays [T], the columns. ZooError for what is missing or not
    finite.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ZooError(f"no table {str(path)!r}")
    if path.stat().st_size > MOST_BYTES:
        raise ZooError(f"{str(path)!r} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    names, values = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ZooError(f"{str(path)!r}: row {row + 1} of column {names[column]!r} is no finite number")
    return names, values


def _read_csv(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    try:
        text = path.read_text("utf-8-sig")
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        rows = list(csv.reader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{str(path)!r} is no CSV file in UTF-8: {error}") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise ZooError(f"{str(path)!r} must have a line of column names and rows of numbers")
    names, table = [name.strip() for name in rows[0]], rows[1:]
    ragged = next((i for i, row in enumerate(table, start=1) if len(row) != len(names)), None)
    if ragged is not None:
        raise ZooError(f"{str(path)!r}: row {ragged} has {len(table[ragged - 1])} columns, not {len(names)}")
    kept = [i for i in range(len(names)) if _number(table[0][i]) is not None]
    if not kept:
        raise ZooError(f"{str(path)!r} has no column of numbers; its first row is {table[0]!r:.80}")
    values = [[_number(row[i]) for i in kept] for row in table]
    return [names[i] for i in kept], np.array([[math.nan if v is None else v for v in row] for row in values])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_npz(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())  # uncompressed
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
    except Exception as error:  # a damaged zip, an array of objects
        raise ZooError(f"{str(path)!r} is no NPZ file of numbers: {str(error)[:100]}") from None
    sizes = {name: array.shape for name, array in arrays.items()}
    if len(arrays) == 1 and next(iter(arrays.values())).ndim == 2:
        values = next(iter(arrays.values()))
        return [str(i) for i in range(values.shape[1])], values
    if not arrays or {array.ndim for array in arrays.values()} != {1} or len({*sizes.values()}) != 1:
        raise ZooError(f"{str(path)!r} must have one array [rows, columns], or arrays of one length; it has {sizes}")
    return list(arrays), np.stack(list(arrays.values()), axis=1)
