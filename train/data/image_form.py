"""The form to which a set's images are brought: height, width, channels and the range of their values."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.data.pictures import Pictures, Survey, in_threads
from train.data.source import IN_MEMORY_BYTES, Split
from zoo.errors import ZooError
from zoo.inputs.image import MOST_SIDE, ImageInputs
from zoo.inputs.image_file import deep_values

SAMPLE = 2048  # images of a large set from which its range and its statistics are taken
CUT = 0.5  # the share of an image that a centre crop may lose before it is noted
MOST_OWN_PIXELS = 2**18  # of an elongated image that keeps its size


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the settings ask for; None for what follows from data and model."""

    size: tuple[int, int] | None
    channels: int | None
    range: tuple[float, float] | None


def parse_size(value: int | str | None) -> tuple[int, int] | None:
    """Height and width of `data.image_size`: a side, or HEIGHTxWIDTH."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", str(value))
    if not found:
        raise ZooError(f"data.image-size must be a side, or HEIGHTxWIDTH, in pixels, not {value!r:.80}")
    size = int(found[1]), int(found[2] or found[1])
    if not all(1 <= side <= MOST_SIDE for side in size):
        raise ZooError(f"data.image-size must be at least 1 and at most {MOST_SIDE}, not {value}")
    return size


def form_of(
    pictures: Pictures, rows: np.ndarray, asked: Asked, model_shape: tuple[int, ...], labels: tuple[str, ...]
) -> tuple[ImageInputs, list[str]]:
    """Inputs of the training pictures' `rows` without mean and standard deviation, and notes.

    The size is the one asked for; else an array's own, or the model's, or, where the model's shape would cut away half
    and all images have one size, their own. Channels are the data's. The range of deeper images is the training data's.
    """
    survey, notes = pictures.survey(), []
    size, of_model = asked.size, (model_shape[0], model_shape[1])
    if size is None and len(survey.sizes) == 1 and (survey.own_size or _elongated(survey, of_model)):
        size = int(survey.sizes[0, 0]), int(survey.sizes[0, 1])
        if not survey.own_size:
            notes.append(
                f"all images have {size[0]} x {size[1]} pixels and keep them, since the cut to {of_model[0]} x "
                f"{of_model[1]} would lose half or more; data.image-size gives another size"
            )
    size, channels = size or of_model, asked.channels or survey.channels
    if asked.range is not None and not survey.deep:
        raise ZooError("data.range is for images of more than 8 bits per channel; all of these have 8")
    inputs = ImageInputs((*size, channels), (0.0,) * channels, (1.0,) * channels, labels, range=asked.range)
    if survey.deep and asked.range is None:
        inputs, note = _with_range(pictures, rows, inputs)
        notes.append(note)
    elif asked.range is not None:
        notes.append(_scaled(asked.range))
    return inputs, [*notes, *_cut_notes(survey, size)]


def given_form(
    pictures: Pictures, rows: np.ndarray, asked: Asked, inputs: ImageInputs, trained: bool
) -> tuple[ImageInputs, list[str]]:
    """`inputs` as these pictures are read with them, and notes.

    Shape and normalisation stand, but for what is asked for where weights are not yet `trained` for these labels; those
    get deeper images in the data's own range, too. A range that is asked for goes before that of the inputs.
    """
    survey, notes = pictures.survey(), []
    shape = (*(asked.size or inputs.shape[:2]), asked.channels or inputs.shape[2])
    if shape != inputs.shape:
        theirs, ours = (" x ".join(map(str, of)) for of in (inputs.shape, shape))
        if trained:
            notes.append(f"images are brought to {theirs}, the model's; data.image-size and data.channels are not used")
        else:
            notes.append(f"images are brought to {ours}, as the settings say; the weights were trained on {theirs}")
            mean, std = (_for_channels(values, shape[2]) for values in (inputs.mean, inputs.std))
            inputs = dataclasses.replace(inputs, shape=shape, mean=mean, std=std)
    size = inputs.shape[:2]
    if asked.range is not None:
        inputs = dataclasses.replace(inputs, range=asked.range)
        notes.append(_scaled(asked.range))
    elif survey.deep and not trained:
        inputs, note = _with_range(pictures, rows, inputs)
        notes.append(note)
    elif survey.deep:
        notes.append(f"{_scaled(inputs.range or (0, 65535))}, as the model was trained")
    return inputs, [*notes, *_cut_notes(survey, size)]


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations of 1 to 4 channels for another number of them."""
    colours = values[:3] if len(values) > 2 else values[:1] * 3
    grey = sum(colours) / 3
    return {1: (grey,), 3: colours, 4: (*colours, grey), len(values): values}[channels]


def _elongated(survey: Survey, size: tuple[int, int]) -> bool:
    """Whether images of one moderate size would lose half or more in a cut to `size`."""
    return bool(len(survey.sizes) == 1 and survey.sizes[0].prod() <= MOST_OWN_PIXELS and _lost(survey, size).all())


def _lost(survey: Survey, size: tuple[int, int]) -> np.ndarray:
    """Of each known size whether a centre crop to `size` loses half or more of the image, [n]."""
    if not len(survey.sizes):
        return np.zeros(0, bool)
    ratio = survey.sizes[:, 1] * size[0] / (survey.sizes[:, 0] * size[1])
    return np.minimum(ratio, 1 / ratio) <= CUT


def _cut_notes(survey: Survey, size: tuple[int, int]) -> list[str]:
    """A note where images lose half or more of their pixels at the edges."""
    lost = _lost(survey, size)
    if not lost.any():
        return []
    which = "all images" if lost.all() else f"{lost.sum()} of {len(lost)} images"
    return [
        f"{which} lose half or more of their pixels in the cut to {size[0]} x {size[1]}; a model trained with another "
        "data.image-size, HEIGHTxWIDTH, keeps more"
    ]


def _scaled(limits: tuple[float, float]) -> str:
    return f"values {limits[0]:g} to {limits[1]:g} of images with more than 8 bits become 0 to 255"


def _with_range(pictures: Pictures, rows: np.ndarray, inputs: ImageInputs) -> tuple[ImageInputs, str]:
    """The inputs with the range of the values of these rows, rounded up to a bit depth, and a note."""
    if len(rows) * math.prod(inputs.shape) >= IN_MEMORY_BYTES:
        rows = rows[spread(len(rows))]
    found = np.array([ends for ends in in_threads(_ends, pictures, rows) if ends is not None]).reshape(-1, 3)
    if not len(found):
        return inputs, "no image of more than 8 bits could be read"
    low, high = float(found[:, 0].min()), float(found[:, 1].max())
    limits = full_range(low, high, bool(found[:, 2].all()))
    note = f"{_scaled(limits)}; those of the training images are {low:g} to {high:g} (data.range gives others)"
    return dataclasses.replace(inputs, range=limits), note


def _ends(example: tuple[Any, Any], name: str) -> tuple[float, float, bool] | None:
    """The least and the greatest value of an image of more than 8 bits, and whether all are whole numbers; None where
    it has 8, or cannot be read, which is counted where its pixels are."""
    try:
        values = deep_values(example[0])
    except ZooError:
        return None
    if values is None or not np.isfinite(values).all():
        return None
    return float(values.min()), float(values.max()), bool((values == np.rint(values)).all())


def full_range(low: float, high: float, whole: bool) -> tuple[float, float]:
    """The range of values between `low` and `high`: whole numbers of at least 0 have a bit depth, of 8 at least,
    fractions may be 0 to 1 or -1 to 1; all others are themselves the ends."""
    if whole and low >= 0 and high > 1:
        return 0.0, float(2 ** max(8, math.ceil(math.log2(high + 1))) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= -1 and high <= 1:
        return -1.0, 1.0
    return (low, high) if low < high else (low, low + 1)


def spread(size: int) -> np.ndarray:
    """At most `SAMPLE` indices, evenly over a split of `size` examples."""
    return np.linspace(0, size - 1, min(SAMPLE, size)).astype(int)


def statistics(split: Split) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Shape of an image, and mean and standard deviation per channel in units of 0 to 1.

    Of all examples where they are in memory, of 2,048 spread evenly over the split where they are not.
    """
    if split.size == 0:
        raise ZooError("the data set has no training examples")
    images = split.read(np.arange(split.size) if split.in_memory else spread(split.size))["image"]
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        levels = np.arange(256) / 255
        centre = float(counts @ levels)
        mean.append(round(centre, 6))
        std.append(round(max(math.sqrt(float(counts @ (levels - centre) ** 2)), 1e-3), 6))
    return images.shape[1:], tuple(mean), tuple(std)


def same_but_case(found: Sequence[str]) -> list[str]:
    """A note for each group of labels that differ by case alone."""
    groups: dict[str, list[str]] = {}
    for label in found:
        groups.setdefault(label.casefold(), []).append(label)
    return [f"the labels {' and '.join(group)} differ by case alone" for group in groups.values() if len(group) > 1]
