"""Images with several labels each: scenes of digits (built in), or a table of image files and their labels."""

import csv
import dataclasses
import functools
import pathlib

import numpy as np

from train.data import digits
from train.data.images import statistics
from train.data.source import ArraySplit, Dataset, NamedSource, hold_out
from train.data.text import read_text
from train.settings import at_least
from zoo.errors import ZooError, unknown
from zoo.inputs import Inputs
from zoo.inputs.image import ImageInputs, fit, open_image

SIZES = {"train": 20000, "validation": 500, "test": 1000}  # scenes
SIDE, CELL, MOST = 28, 9, 4  # pixels of a scene and of its 3 x 3 cells; the most digits in it
SPLITS = tuple(SIZES)


@dataclasses.dataclass(frozen=True)
class MultiLabelData(NamedSource):
    """Examples have `image` uint8 [H, W, C] and `labels` float32 [classes], 1 for each label that holds."""

    name: str = "digit-scenes"  # one to four of scikit-learn's digits in a picture
    # instead of a name, a CSV table with the columns file, labels (separated by semicolons) and, if you like, split
    # (train, validation, test); files are relative to the table
    path: str | None = None
    image_size: int | None = None  # side in pixels to which images of a table are scaled; default: the model's
    seed: int = 0  # of digit-scenes

    def check(self) -> None:
        super().check()
        at_least("data.seed", self.seed, 0)
        if self.image_size is not None:
            at_least("data.image-size", self.image_size, 1)
        if self.path is None and self.name != "digit-scenes":
            raise unknown("multi-label data set", self.name, ["digit-scenes"])

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        self.inputs_of_kind(inputs, "image")
        if self.path is None:
            labels = tuple(map(str, range(10)))
            name, splits = f"digit-scenes of seed {self.seed}", {split: scenes(split, self.seed) for split in SPLITS}
        else:
            side = self.image_size
            size = (side, side) if side else (model_shape[0], model_shape[1])
            name, splits, labels = read_table(pathlib.Path(self.path), size)
        train, validation = splits["train"], splits.get("validation")
        if validation is None:
            train, validation = hold_out(train, self.validation_fraction)
        shape, mean, std = statistics(train)
        known = ImageInputs(shape, mean, std, labels, exclusive=False)
        return Dataset(name, train, validation, splits.get("test"), known)


def scenes(split: str, seed: int) -> ArraySplit:
    """Scenes of one to four digits in different cells, shifted by up to a pixel.

    Test digits are other people's than those of train and validation, and no digit is in two splits.
    """
    images, labels = _digits(split)
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    pictures = np.zeros((SIZES[split], SIDE, SIDE, 1), np.uint8)
    targets = np.zeros((SIZES[split], 10), np.float32)
    for picture, target in zip(pictures, targets, strict=True):
        cells = rng.permutation(9)[: rng.integers(1, MOST + 1)]
        for cell, k in zip(cells, rng.integers(len(labels), size=len(cells)), strict=True):
            row, column = np.array(divmod(cell, 3)) * CELL + rng.integers(0, 2, 2)
            picture[row : row + 8, column : column + 8] = images[k]
            target[labels[k]] = 1
    return ArraySplit({"image": pictures, "labels": targets})


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split, and their labels; the last tenth of the training digits validates."""
    _, splits, _ = digits.load()
    train, validation = hold_out(splits["train"], 0.1)
    arrays = {"train": train, "validation": validation, "test": splits["test"]}[split].arrays
    return arrays["image"], arrays["label"]


def read_table(path: pathlib.Path, size: tuple[int, int]) -> tuple[str, dict[str, ArraySplit], tuple[str, ...]]:
    """Name, splits and the sorted labels of a table; images become RGB of `size` (height, width).

    ZooError for a table without the columns, a row without a file, an unknown split, or a file that is no image.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except csv.Error as error:
        raise ZooError(f"{str(path)!r} is no CSV file: {error}") from None
    if not rows or not {"file", "labels"} <= {*rows[0]}:
        raise ZooError(f"{str(path)!r} must have the columns file and labels, and a row; it has {[*rows[:1]]!r:.80}")
    if short := next((number for number, row in enumerate(rows, start=1) if not row["file"]), None):
        raise ZooError(f"{str(path)!r}: row {short} names no file")
    found = [[label.strip() for label in (row["labels"] or "").split(";") if label.strip()] for row in rows]
    labels = tuple(sorted({label for some in found for label in some}))
    if not labels:
        raise ZooError(f"{str(path)!r} names no label in its column labels")
    splits: dict[str, ArraySplit] = {}
    for split in SPLITS:
        chosen = [i for i, row in enumerate(rows) if (row.get("split") or "train").strip() == split]
        if chosen:
            images = np.stack([fit(open_image(path.parent / rows[i]["file"], 3), size) for i in chosen])
            targets = np.array([[label in found[i] for label in labels] for i in chosen], np.float32)
            splits[split] = ArraySplit({"image": images, "labels": targets})
    wrong = {(row.get("split") or "train").strip() for row in rows} - {*SPLITS}
    if wrong:
        raise unknown(f"split in {str(path)!r}", min(wrong), SPLITS)
    if "train" not in splits:
        raise ZooError(f"{str(path)!r} has no row of the split train")
    return path.stem, splits, labels
