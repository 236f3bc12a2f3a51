"""Images with a class for every pixel: any segmentation set of TFDS, or a folder of images and masks."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.data import masks, tfds
from train.data.borders import border_distances
from train.data.image_form import parse_size, statistics
from train.data.labels import numbers_in
from train.data.source import IN_MEMORY_BYTES, Arrays, ArraySplit, Dataset, LazySplit, TfdsSource, hold_out
from zoo.errors import ZooError
from zoo.inputs import Inputs, SegmentationInputs
from zoo.inputs.image import checked_range
from zoo.inputs.image_file import header

IGNORED = 255  # in a mask: pixels that are not counted
MOST_FOUND = 32  # values of masks whose classes nobody has named

# A sequence of raw images, as `SegmentationInputs.pixels` takes them, and masks, with a `name` and `values()` [h, w].
Pairs = Any


@dataclasses.dataclass(frozen=True)
class SegmentationData(TfdsSource):
    """Examples have `image` uint8 [H, W, C] and `mask` uint8 [H, W]: each pixel's class, or 255 where it is not
    counted, which are pixels of value 255 or -1, and those that fill smaller images up to the size of the largest."""

    name: str = ""  # a segmentation set of TFDS: features image and segmentation_mask
    # instead of a name, a folder with images/ and masks/, or with such folders in train/, validation/, test/. The mask
    # of an image has its name: a palette or grey image of the classes' values (named line by line in classes.txt), or
    # one file a class in masks/CLASS/, not 0 where the class is
    path: str | None = None
    # pixels of the pieces that the model is trained on and predicts at a time, a side or HEIGHTxWIDTH; default: those
    # that the model is registered with
    tile: int | str | None = None
    channels: int | None = None  # 1 (grey) or 3 (RGB); default: the data's
    range: list[float] | None = None  # the two values that become 0 and 255 in images of more than 8 bits
    borders: bool = False  # training examples have `border` uint8 [H, W], for task.border-weight

    def check(self) -> None:
        super().check()
        parse_size(self.tile)
        if not self.name and self.path is None:
            raise ZooError("data.name must be a segmentation set of TFDS, or data.path a folder of images and masks")
        if self.channels not in (None, 1, 3):
            raise ZooError(f"data.channels must be 1 or 3, not {self.channels}")
        if self.range is not None:
            checked_range("data.range", self.range)

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """See `Source.load`."""
        known = self.inputs_of_kind(inputs, "segmentation")
        splits: dict[str, Any]
        if self.path is not None:
            name, splits, names = masks.find(self.path)
            channels = max(header(image).channels for image, _ in splits["train"])
        else:
            name, splits, names, channels = tfds.load_masks(self.name, self.tfds_dir())
        notes, numbered = [], {}
        if names is None:
            numbered = _values(name, splits["train"])
            names = [str(value) for value in numbered]
            notes.append(f"{name}: the classes are the masks' values {', '.join(names)}")
        else:
            numbered = {value: value for value in range(len(names))}
        if len(names) < 2 or len(names) > IGNORED:
            raise ZooError(f"{name} needs 2 to {IGNORED} classes of pixels; it has {len(names)}")
        if known is None or not known.labels:
            tile, channels = parse_size(self.tile) or model_shape[:2], self.channels or channels
            limits = None if self.range is None else checked_range("data.range", self.range)
            shape, unit = (tile[0], tile[1], channels), (0.5,) * channels
            form = SegmentationInputs(shape, unit, unit, tuple(names), range=limits)
        else:
            places = numbers_in(known.labels, names, name)
            numbered, form = {value: int(places[number]) for value, number in numbered.items()}, known
        read = {split: _read(pairs, form, numbered) for split, pairs in splits.items()}
        train, validation = read["train"], read.get("validation")
        if validation is None:
            train, validation = hold_out(train, self.validation_fraction)
        if known is None:
            _, mean, std = statistics(train)
            form = dataclasses.replace(form, mean=mean, std=std)
        if self.borders:
            train = _with_borders(train)
        return Dataset(name, train, validation, read.get("test"), form, tuple(notes))


def _values(name: str, pairs: Pairs) -> dict[int, int]:
    """The values of the training masks, each with its class: their order, without 255 and -1, which mean not counted.

    255 is a class where 0 is the only other value, as in masks of black and white.
    """
    found = sorted({int(value) for _, mask in pairs for value in np.unique(mask.values())} - {-1})
    found = found if found == [0, IGNORED] else [value for value in found if value != IGNORED]
    if len(found) > MOST_FOUND:
        raise ZooError(f"the masks of {name} have {len(found)} values; name those that are classes in {masks.LIST}")
    return {value: number for number, value in enumerate(found)}


def _read(pairs: Pairs, inputs: SegmentationInputs, numbered: dict[int, int]) -> Any:
    """A split in memory, or, where it is large, one that reads its images when asked. All masks are checked."""
    kept: list[Any] = []
    in_memory, largest = True, [*inputs.shape[:2]]
    for pair in pairs:
        image, mask = _example(pair, inputs, numbered)
        largest = [max(sides) for sides in zip(largest, mask.shape, strict=True)]
        in_memory = len(pairs) * math.prod(largest) * (inputs.shape[-1] + 1) < IN_MEMORY_BYTES
        if in_memory:
            kept.append((image, mask))
        else:
            kept.clear()

    def stacked(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Arrays:
        images, found = zip(*(_filled(*example, largest) for example in examples), strict=True)
        return {"image": np.stack(images), "mask": np.stack(found)}

    if in_memory:
        return ArraySplit(stacked(kept))
    return LazySplit(len(pairs), lambda rows: stacked([_example(pairs[row], inputs, numbered) for row in rows]))


def _example(pair: tuple[Any, Any], inputs: SegmentationInputs, numbered: dict[int, int]) -> tuple[Any, np.ndarray]:
    """An image uint8 [h, w, C] and its mask uint8 [h, w]; ZooError, with the mask's name, where they do not fit."""
    image, values = inputs.pixels(pair[0]), pair[1].values()
    if values.shape != image.shape[:2]:
        raise ZooError(
            f"{pair[1].name} has {masks.sides(values)} pixels; its image {masks.sides(image)}; they must be the same"
        )
    mask = np.full(values.shape, IGNORED, np.uint8)
    for value in np.unique(values):
        if value in numbered:
            mask[values == value] = numbered[int(value)]
        elif value not in (-1, IGNORED):
            listed = ", ".join(map(str, [*numbered][:8]))
            raise ZooError(
                f"{pair[1].name} has the value {value}, which is no class: those are {listed}; 255 is not counted"
            )
    return image, mask


def _filled(image: np.ndarray, mask: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both filled up to a size at the bottom and on the right: the image by its mirror image, the mask by `IGNORED`."""
    pads = [(0, side - own) for side, own in zip(size, mask.shape, strict=True)]
    return np.pad(image, (*pads, (0, 0)), mode="symmetric"), np.pad(mask, pads, constant_values=IGNORED)


def _with_borders(split: Any) -> Any:
    if isinstance(split, ArraySplit):
        return ArraySplit({**split.arrays, "border": _borders(split.arrays["mask"])})
    decode: Callable[[list[int]], Arrays] = split.decode

    def more(rows: list[int]) -> Arrays:
        arrays = decode(rows)
        return {**arrays, "border": _borders(arrays["mask"])}

    return dataclasses.replace(split, decode=more)


def _borders(found: np.ndarray) -> np.ndarray:
    return np.stack([border_distances(mask) for mask in found])
