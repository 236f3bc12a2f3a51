"""Labelled images: digits (built in), any labelled image set of TFDS, a folder of class folders."""

import dataclasses
import math

import numpy as np

from train.data import digits, image_folder, tfds
from train.data.source import Dataset, Split, TfdsSource, first, hold_out
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.image import ImageInputs


@dataclasses.dataclass(frozen=True)
class ImageData(TfdsSource):
    """Images with a class each."""

    name: str = "digits"  # digits (built in), or any labelled image set of TFDS
    path: str | None = None  # a folder of class folders, instead of a name
    image_size: int | None = None  # side in pixels to which images are scaled; default: the model's, where sizes vary
    train_examples: int | None = None  # only so many training examples, the first ones; default: all

    def check(self) -> None:
        super().check()
        if self.train_examples is not None:
            at_least("data.train-examples", self.train_examples, 1)
        if self.image_size is not None:
            at_least("data.image-size", self.image_size, 1)

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        self.inputs_of_kind(inputs, "image")
        side = self.image_size
        size = (side, side) if side else (model_shape[0], model_shape[1])
        if self.path is not None:
            name, splits, labels = image_folder.load(self.path, size)
        elif self.name == "digits":
            name, splits, labels = digits.load(size if side else None)
        else:
            name, splits, labels = tfds.load(self.name, self.tfds_dir(), size, resize=side is not None)
        train, validation = splits["train"], splits.get("validation")
        if validation is None:
            train, validation = hold_out(train, self.validation_fraction)
        if self.train_examples is not None:
            if self.train_examples > train.size:
                raise ZooError(f"data.train-examples is {self.train_examples}, but {name} has {train.size} to train on")
            train = first(train, self.train_examples)
        shape, mean, std = statistics(train)
        return Dataset(name, train, validation, splits.get("test"), ImageInputs(shape, mean, std, tuple(labels)))


def statistics(split: Split) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Shape of an image, and mean and standard deviation per channel in units of 0 to 1.

    Of all examples where they are in memory, of 2,048 spread evenly over the split where they are not.
    """
    if split.size == 0:
        raise ZooError("the data set has no training examples")
    if split.in_memory:
        images = split.read(np.arange(split.size))["image"]
    else:
        images = split.read(np.linspace(0, split.size - 1, min(2048, split.size)).astype(int))["image"]
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        levels = np.arange(256) / 255
        centre = float(counts @ levels)
        mean.append(round(centre, 6))
        std.append(round(max(math.sqrt(float(counts @ (levels - centre) ** 2)), 1e-3), 6))
    return images.shape[1:], tuple(mean), tuple(std)
