"""Series of numbers: the Mackey-Glass equation (computed), or a table, CSV or NPZ."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from train.data.batches import eval_batches
from train.data.source import Arrays, Dataset, Examples, NamedSource
from train.settings import at_least
from zoo.errors import ZooError, unknown
from zoo.inputs import Inputs
from zoo.inputs.series import SeriesInputs, read_series


@dataclasses.dataclass(frozen=True)
class SeriesData(NamedSource):
    """Windows of a series, and what comes `horizon` rows after each of their rows.

    The last rows test, the rows before them validate; windows reach back into earlier splits, targets do not.
    """

    name: str = "mackey-glass"
    path: str | None = None  # instead of a name: a CSV with a line of column names, or an NPZ
    targets: list[str] = dataclasses.field(default_factory=list)  # the columns to predict; default: all
    horizon: int = 6  # rows ahead
    context: int = 64  # rows of a window
    warmup: int = 32  # rows at a window's beginning whose predictions do not count
    test_fraction: float = 0.1  # the last share of a table, which tests

    def check(self) -> None:
        super().check()
        at_least("data.horizon", self.horizon, 1)
        at_least("data.warmup", self.warmup, 0)
        at_least("data.context", self.context, self.warmup + 1)
        if not 0 <= self.test_fraction < 1:
            raise ZooError(f"data.test-fraction must be in [0, 1), not {self.test_fraction}")
        if self.path is None and self.name != "mackey-glass":
            raise unknown("series", self.name, ["mackey-glass"])

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        known: SeriesInputs | None = self.inputs_of_kind(inputs, "series")
        if self.path is None:
            name, columns, values = "Mackey-Glass, tau 17", ["x"], mackey_glass(END + self.horizon)[:, None]
            ends = {"train": (FIRST, MIDDLE), "test": (MIDDLE, END)}
        else:
            columns, values = read_series(self.path)
            name, last = pathlib.Path(self.path).name, len(values) - self.horizon
            middle = last - int(last * self.test_fraction)
            ends = {"train": (0, middle), "test": (middle, last)}
        first, middle = ends["train"]
        held = int((middle - first) * self.validation_fraction)
        ends = {"train": (first, middle - held), "validation": (middle - held, middle), "test": ends["test"]}
        if ends["train"][1] - first < self.context - self.warmup:
            raise ZooError(f"{name} has {len(values)} rows, too few to train on with data.context {self.context}")
        if known is None:
            rows = values[: ends["train"][1]]
            std = np.maximum(rows.std(axis=0), 1e-8).tolist()
            targets = tuple(self.targets) or tuple(columns)
            for target in targets:
                if target not in columns:
                    raise unknown("column in data.targets", target, columns)
            known = SeriesInputs(
                tuple(columns), targets, tuple(rows.mean(axis=0).tolist()), tuple(std), self.horizon, self.context
            )
        scaled = np.asarray(known.normalize(values), np.float32)
        parts = {
            split: self._windows(scaled, known.places, start, stop)
            for split, (start, stop) in ends.items()
            if stop > start
        }
        return Dataset(name, parts["train"], parts.get("validation"), parts.get("test"), known)

    def _windows(self, values: np.ndarray, places: list[int], start: int, stop: int) -> "Windows":
        return Windows(values, places, self.horizon, self.context, self.context - self.warmup, start, stop)


@dataclasses.dataclass(frozen=True)
class Windows(Examples):
    """Windows of normalised `values` [T, C], each with predictions due at its last `counted` rows.

    Predictions are due at the rows `start` to `stop` - 1, `horizon` rows ahead. Training draws windows that end at any
    of these rows; evaluation lays them end to end, so that each prediction counts once.
    """

    values: np.ndarray
    places: list[int]  # the columns to predict
    horizon: int
    context: int
    counted: int
    start: int
    stop: int
    in_memory = True

    @property
    def described(self) -> str:
        return f"{self.stop - self.start:,} predictions"

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.stop - self.start - self.counted + 1

    def read(self, indices: np.ndarray) -> Arrays:
        """`values` float32 [n, context, C], `targets` float32 [n, context, K], and `counted` float32 [n, context], 1
        where a prediction is due. Before the series' first row its value is repeated."""
        return self._ending(self.start + self.counted + np.asarray(indices))

    def _ending(self, ends: np.ndarray) -> Arrays:
        """The windows before rows `ends` [n]."""
        rows = ends[:, None] - self.context + np.arange(self.context)
        last = len(self.values) - 1
        inside = (rows >= self.start) & (rows < self.stop) & (np.arange(self.context) >= self.context - self.counted)
        targets = self.values[np.clip(rows + self.horizon, 0, last)][..., self.places]
        return {"values": self.values[np.clip(rows, 0, last)], "targets": targets, "counted": inside.astype(np.float32)}

    def sample(self) -> Arrays:
        return {"values": self.values[max(self.start - self.context, 0) : self.stop + self.horizon]}

    def eval_steps(self, batch_size: int) -> int:
        return -(-self._pieces() // batch_size)

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
        return eval_batches(self._piece, self._pieces(), batch_size, rows)

    def _piece(self, indices: np.ndarray) -> Arrays:
        """The windows of evaluation, whose due predictions follow one another."""
        return self._ending(self.start + self.counted * (indices + 1))

    def _pieces(self) -> int:
        return -(-(self.stop - self.start) // self.counted)


FIRST, MIDDLE, END = 118, 618, 1118  # the benchmark's rows: 500 to train on, 500 to test on (Jang 1993)
STEP = 0.1  # seconds of the integration, of which ten make a row


def mackey_glass(rows: int, tau: float = 17.0, first: float = 1.2) -> np.ndarray:
    """x' = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x, float64 [rows], one a second.

    It starts from x(0) = `first` and x(t < 0) = 0. Fourth-order Runge-Kutta, as for the benchmark (Mackey and Glass
    1977; Jang 1993); between its steps the delayed value is the mean of its neighbours.
    """
    per_row, delay = round(1 / STEP), round(tau / STEP)
    x = np.zeros(rows * per_row + 1)
    x[0] = first

    def slope(now: float, past: float) -> float:
        return 0.2 * past / (1 + past**10) - 0.1 * now

    for i in range(len(x) - 1):
        begin, end = (x[i + j - delay] if i + j >= delay else 0.0 for j in (0, 1))
        middle = (begin + end) / 2
        k1 = slope(x[i], begin)
        k2 = slope(x[i] + STEP / 2 * k1, middle)
        k3 = slope(x[i] + STEP / 2 * k2, middle)
        k4 = slope(x[i] + STEP * k3, end)
        x[i + 1] = x[i] + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x[::per_row][:rows]
