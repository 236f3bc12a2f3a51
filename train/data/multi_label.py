"""Images with several labels each: scenes of digits (built in), or a table of image files and their labels."""

import dataclasses
import functools
from collections.abc import Collection

import numpy as np

from train.data import digits, image_table
from train.data.image_source import Found, ImageSource
from train.data.pictures import StoredPictures
from train.data.source import Dataset
from train.data.splits import SPLITS
from train.settings import at_least
from zoo.errors import unknown
from zoo.inputs import Inputs

SIZES = {"train": 20000, "validation": 500, "test": 1000}  # scenes
SIDE, CELL, MOST = 28, 9, 4  # pixels of a scene and of its 3 x 3 cells; the most digits in it


@dataclasses.dataclass(frozen=True)
class MultiLabelData(ImageSource):
    """Examples have `image` uint8 [H, W, C] and `labels` float32 [classes], 1 for each label that holds."""

    name: str = "digit-scenes"  # one to four of scikit-learn's digits in a picture
    # instead of a name, a CSV table with the columns file, labels (separated by semicolons) and, if you like, split
    # (train, validation, test); files are relative to the table
    path: str | None = None
    seed: int = 0  # of digit-scenes

    def check(self) -> None:
        super().check()
        at_least("data.seed", self.seed, 0)
        if self.path is None and self.name != "digit-scenes":
            raise unknown("multi-label data set", self.name, ["digit-scenes"])

    def load(
        self, model_shape: tuple[int, ...], inputs: Inputs | None = None, replaced: Collection[str] = ()
    ) -> Dataset:
        """See `Source.load`. `replaced` are files that a resumed run could not read, which keep their places."""
        known = self.inputs_of_kind(inputs, "image")
        if self.path is not None:
            found = image_table.load_several(self.path, replaced)
        else:
            splits = {split: scenes(split, self.seed) for split in SPLITS}
            found = Found(f"digit-scenes of seed {self.seed}", splits, digits.LABELS)
        return self.dataset(found, model_shape, known, exclusive=False)


def scenes(split: str, seed: int) -> StoredPictures:
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
    return StoredPictures(pictures, targets)


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split, and their labels; the last tenth of the training digits validates."""
    found = digits.found().splits["test" if split == "test" else "train"]
    cut = len(found) - int(len(found) * 0.1)
    part = {"train": slice(cut), "validation": slice(cut, None), "test": slice(None)}[split]
    return found.images[part], found.targets[part]
