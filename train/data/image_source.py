"""What all sources of images share: their settings, and the way from what they find to a data set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.image_form import Asked, form_of, given_form, parse_size, same_but_case, statistics
from train.data.labels import numbers_in
from train.data.pictures import PictureSplit, read_split
from train.data.source import Dataset, NamedSource, hold_out
from train.data.unreadable import Unreadable
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs, checked_range


@dataclasses.dataclass(frozen=True)
class Found:
    """What a source found: the `Pictures` of each split, whose targets number the labels."""

    name: str
    splits: Mapping[str, Any]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)  # files that are no images though named so
    sorted_by_class: bool = False  # so that the end of train is no sample of it
    needs: str = "two labels"


@dataclasses.dataclass(frozen=True)
class ImageSource(NamedSource, abstract=True):
    """Settings of all sources of images."""

    # pixels to which images are scaled, a side or HEIGHTxWIDTH; default: the model's, where sizes vary
    image_size: int | str | None = None
    channels: int | None = None  # 1 (grey), 3 (RGB) or 4 (with transparency); default: the data's
    # the two values that become 0 and 255 in images of more than 8 bits; default: the training images', rounded up to a
    # bit depth
    range: list[float] | None = None
    most_unreadable: float = 0.01  # the share of images that may be unreadable and are left out

    def check(self) -> None:
        super().check()
        parse_size(self.image_size)
        if self.channels not in (None, 1, 3, 4):
            raise ZooError(f"data.channels must be 1, 3 or 4, not {self.channels}")
        if self.range is not None:
            checked_range("data.range", self.range)
        at_least("data.most-unreadable", self.most_unreadable, 0)

    def dataset(self, found: Found, model_shape: tuple[int, ...], inputs: Any, exclusive: bool = True) -> Dataset:
        """The data set of what was found; brought to `inputs`, where there are some (see `Source.load`)."""
        total = sum(map(len, found.splits.values())) + len(found.unread)
        unreadable = Unreadable(self.most_unreadable, total)
        for name, reason in found.unread.items():
            unreadable.leave_out(name, reason)
        least = 2 if exclusive else 1
        if len(found.labels) < least or not found.splits.get("train"):
            unreadable.check()  # which may be why
        found, notes = _matched(found, inputs, least)
        splits = found.splits
        rows = {name: np.arange(len(split)) for name, split in splits.items()}
        if found.sorted_by_class and "validation" not in splits:
            rows["train"] = np.random.default_rng(0).permutation(rows["train"])
        form, more = self._form(splits["train"], rows["train"], model_shape, inputs, found.labels)
        read = {name: read_split(splits[name], rows[name], form, unreadable) for name in splits}
        train, validation, test = read["train"], read.get("validation"), read.get("test")
        if validation is None:
            train, validation = hold_out(train, self.validation_fraction)
        validation, test = map(_held_out, (validation, test))
        unreadable.check()
        if inputs is None:
            _, mean, std = statistics(train)
            form = dataclasses.replace(form, mean=mean, std=std)
        trained = inputs is not None and inputs.labels
        form = inputs if trained else dataclasses.replace(form, exclusive=exclusive)
        notes = [*found.notes, *notes, *more, *unreadable.notes()]
        return Dataset(found.name, train, validation, test, form, tuple(notes), unreadable)

    def _form(
        self, train: Any, rows: np.ndarray, model_shape: tuple[int, ...], inputs: Any, labels: tuple[str, ...]
    ) -> tuple[ImageInputs, list[str]]:
        """The inputs that images are read with, and notes."""
        limits = None if self.range is None else checked_range("data.range", self.range)
        asked = Asked(parse_size(self.image_size), self.channels, limits)
        if inputs is None:
            return form_of(train, rows, asked, model_shape, labels)
        return given_form(train, rows, asked, dataclasses.replace(inputs, labels=labels), bool(inputs.labels))


def _matched(found: Found, inputs: Any, least: int) -> tuple[Found, list[str]]:
    """What was found with the labels of `inputs`, where it has some, and notes about labels."""
    notes = same_but_case(found.labels)
    if inputs is None or not inputs.labels:
        if len(found.labels) < least:
            raise ZooError(f"{found.name!r} needs at least {found.needs}; it has {[*found.labels]}")
        return found, notes
    if not found.splits.get("train"):
        raise ZooError(f"{found.name!r} has no images in the split train")
    numbers = numbers_in(inputs.labels, found.labels, found.name)
    if absent := [label for number, label in enumerate(inputs.labels) if number not in numbers]:
        named = f"{', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}"
        notes.append(f"{found.name} has {len(numbers)} of the model's {len(inputs.labels)} labels; it lacks {named}")
    splits = {name: split.renumbered(numbers, len(inputs.labels)) for name, split in found.splits.items()}
    return dataclasses.replace(found, splits=splits, labels=inputs.labels), notes


def _held_out(split: Any) -> Any:
    """A held-out split of which every example can be read; None for an empty one."""
    if isinstance(split, PictureSplit):
        split = split.readable()
    return split if split is not None and split.size else None
