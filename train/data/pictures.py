"""Images before they are decoded, as sources find them, and the splits that training reads."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from train.data.batches import eval_batches
from train.data.source import IN_MEMORY_BYTES, Arrays, ArraySplit, Examples
from train.data.unreadable import Unreadable
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.inputs.image_file import Header, header

PIECE = 1024  # images decoded at a time
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a split's images before they are decoded."""

    sizes: np.ndarray  # [n, 2] of heights and widths, one row where all are the same; empty where they are not known
    channels: int
    deep: bool  # whether some have more than 8 bits
    own_size: bool  # whether they keep their size unless another is asked for


class Pictures(Protocol):
    """The examples of a split with images of any size and depth."""

    target: str  # the name of the array that goes with the images: label, or labels

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        """Raw images, as `ImageInputs.pixels` takes them, and their targets: a number, below 0 for none, or an array
        [classes]."""

    def name(self, row: int) -> str:
        """What messages call an example."""

    def survey(self) -> Survey: ...

    def renumbered(self, numbers: np.ndarray, classes: int) -> "Pictures":
        """The same with label i as `numbers[i]` of `classes`."""


@dataclasses.dataclass(frozen=True)
class StoredPictures:
    """Files, or an array of images [n, h, w] or [n, h, w, c]."""

    images: Any
    targets: np.ndarray  # label int32 [n], or labels float32 [n, classes]
    names: Sequence[str] = ()  # of files
    headers: Sequence[Header] = ()  # of files

    @property
    def target(self) -> str:
        return "label" if self.targets.ndim == 1 else "labels"

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        return [(self.images[row], self.targets[row]) for row in rows]

    def name(self, row: int) -> str:
        return self.names[row] if self.names else f"image {row}"

    def survey(self) -> Survey:
        if isinstance(self.images, np.ndarray):
            channels = self.images.shape[3] if self.images.ndim == 4 else 1
            deep = self.images.dtype not in (np.uint8, np.bool_)
            return Survey(np.array([self.images.shape[1:3]]), channels, deep, own_size=True)
        sizes = np.unique([found.size for found in self.headers], axis=0)
        counted = np.array([found.size for found in self.headers]) if len(sizes) > 1 else sizes
        channels = max(found.channels for found in self.headers)
        return Survey(counted, channels, any(found.deep for found in self.headers), own_size=False)

    def renumbered(self, numbers: np.ndarray, classes: int) -> "StoredPictures":
        if self.targets.ndim == 1:
            targets = np.where(self.targets < 0, -1, numbers[self.targets]).astype(np.int32)
        else:
            targets = np.zeros((len(self), classes), np.float32)
            targets[:, numbers] = self.targets
        return dataclasses.replace(self, targets=targets)


@dataclasses.dataclass(frozen=True)
class PictureSplit(Examples):
    """Images decoded when they are asked for.

    In training one that cannot be read is replaced by the next of its split that can; in evaluation it is a ZooError.
    """

    pictures: Pictures
    chosen: np.ndarray  # the numbers of its pictures, in order
    inputs: ImageInputs
    unreadable: Unreadable
    in_memory = False

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.chosen)

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        targets = getattr(self.pictures, "targets", None)
        return None if targets is None or targets.ndim > 1 else targets[self.chosen]

    def _decoded(self, rows: Iterable[int]) -> Iterable[Any]:
        return _mapped(functools.partial(_decoded, self.inputs), self.pictures, rows)

    def read(self, indices: np.ndarray) -> Arrays:
        found = self._decoded(self.chosen[indices])
        examples = [
            self._next(int(index), example) if isinstance(example, ZooError) else example
            for index, example in zip(indices, found, strict=True)
        ]
        return self._stacked(examples)

    def _next(self, index: int, found: Any) -> tuple[np.ndarray, Any]:
        """The first example from `index` on that can be read; `found` is what is known of it itself."""
        for place in range(index, index + self.size):
            row = self.chosen[place % self.size]
            if place > index:
                (found,) = self._decoded([row])
            if not isinstance(found, ZooError):
                return found
            self.unreadable.replace(self.pictures.name(row), str(found))
        raise found

    def _stacked(self, examples: Sequence[tuple[np.ndarray, Any]]) -> Arrays:
        images, targets = zip(*examples, strict=True)
        return {"image": np.stack(images), self.pictures.target: stacked(targets)}

    def _strictly(self, indices: np.ndarray) -> Arrays:
        examples = list(self._decoded(self.chosen[indices]))
        for example in examples:
            if isinstance(example, ZooError):
                raise example
        return self._stacked(examples)

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
        return eval_batches(self._strictly, self.size, batch_size, rows)

    def sample(self) -> Arrays:
        return self.read(np.linspace(0, self.size - 1, min(64, self.size)).astype(int))

    def part(self, start: int, stop: int) -> "PictureSplit":
        return dataclasses.replace(self, chosen=self.chosen[start:stop])

    def readable(self) -> "PictureSplit":
        """The split without what cannot be read, each image decoded once to find it; for held-out examples."""
        kept, decode = [], functools.partial(_decoded, self.inputs)
        for row, example in zip(self.chosen, in_threads(decode, self.pictures, self.chosen), strict=True):
            if isinstance(example, ZooError):
                _leave_out(self.pictures.name(row), example, self.unreadable, keeps_place=True)
            else:
                kept.append(row)
        return dataclasses.replace(self, chosen=np.array(kept, int))


def read_split(pictures: Pictures, rows: np.ndarray, inputs: ImageInputs, unreadable: Unreadable) -> Any:
    """The `rows` of a split as arrays in memory, without what cannot be read or has no label; a large split as one that
    reads its images batch by batch."""
    if len(rows) * math.prod(inputs.shape) >= IN_MEMORY_BYTES:
        return PictureSplit(pictures, rows, inputs, unreadable)
    images = np.empty((len(rows), *inputs.shape), np.uint8)
    targets: list[Any] = []
    for row, example in zip(rows, in_threads(functools.partial(_decoded, inputs), pictures, rows), strict=True):
        if not isinstance(example, ZooError):
            images[len(targets)], target = example
            targets.append(target)
        else:
            _leave_out(pictures.name(row), example, unreadable)
    return ArraySplit({"image": images[: len(targets)], pictures.target: stacked(targets)})


class Unlabelled(ZooError):
    """An example without a label."""


def _leave_out(name: str, error: ZooError, unreadable: Unreadable, keeps_place: bool = False) -> None:
    if isinstance(error, Unlabelled):
        unreadable.unlabelled += 1
    else:
        unreadable.leave_out(name, str(error), keeps_place)


def in_threads(function: Callable, pictures: Pictures, rows: np.ndarray) -> Iterator[Any]:
    """`function(example, name)` of each row, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(rows), PIECE):
            yield from _mapped(function, pictures, rows[start : start + PIECE], pool.map)


def _mapped(function: Callable, pictures: Pictures, rows: Iterable[int], mapping: Callable = map) -> Iterable[Any]:
    numbers = [int(row) for row in rows]
    examples = pictures.take(numbers)
    if examples and isinstance(examples[0][0], np.ndarray):  # which is little work
        mapping = map
    return mapping(function, examples, map(pictures.name, numbers))


def _decoded(inputs: ImageInputs, example: tuple[Any, Any], name: str) -> Any:
    """The pixels uint8 and the target, or the ZooError that says why there are none."""
    raw, target = example
    if np.ndim(target) == 0 and target < 0:
        return Unlabelled(f"{name} has no label")
    try:
        return inputs.pixels(raw), target
    except ZooError as error:
        return ZooError(str(error).replace("the image", name, 1))


def stacked(targets: Sequence[Any]) -> np.ndarray:
    """Labels int32 [n], or float32 [n, classes]."""
    array = np.array(targets)
    return array.astype(np.int32 if array.ndim == 1 else np.float32)


def headers_of(paths: Iterable[Any]) -> list[Any]:
    """Of each path its `Header`, or the ZooError that says why it is no image."""

    def attempt(path: Any) -> Any:
        try:
            return header(path)
        except ZooError as error:
            return error

    paths = list(paths)
    found: list[Any] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), PIECE):
            found += pool.map(attempt, paths[start : start + PIECE])
    return found
