"""A data set: its splits, and what a model's user must know of its inputs."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zoo.arrays import digest_of
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.image import ImageInputs

if TYPE_CHECKING:
    from train.config import DataConfig, PairsConfig, TextConfig

Arrays = dict[str, np.ndarray]
IN_MEMORY_BYTES = 2 << 30  # larger sets, decoded, are read from their files batch by batch


class Split(Protocol):
    """Examples 0 to size - 1, read by index."""

    @property
    def size(self) -> int: ...

    @property
    def in_memory(self) -> bool: ...

    def read(self, indices: np.ndarray) -> Arrays:
        """The examples of `indices`, stacked: `label` int32 [n] and `image` uint8 [n, H, W, C], or `tokens` int32
        [n, T] and `length` int32 [n]; of a text read as one stream, see `train.data.text.Stream`; of a source and a
        target, `train.data.pairs.PairSplit`."""
        ...

    def sample(self) -> Arrays:
        """Arrays that change where its examples do: all of them, or of what is read from files a few."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples as arrays in memory; reading is one gather."""

    arrays: Arrays
    in_memory = True

    @property
    def size(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, indices: np.ndarray) -> Arrays:
        return {name: array[indices] for name, array in self.arrays.items()}

    def sample(self) -> Arrays:
        return self.arrays


@dataclasses.dataclass(frozen=True)
class LazySplit:
    """Examples `start` to `start + size - 1` of a source that decodes them when asked."""

    size: int
    decode: Callable[[list[int]], Arrays]
    start: int = 0
    in_memory = False

    def read(self, indices: np.ndarray) -> Arrays:
        return self.decode([self.start + int(i) for i in indices])

    def sample(self) -> Arrays:
        return self.read(np.linspace(0, self.size - 1, min(64, self.size)).astype(int))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits and inputs; a set without labels for testing has no `test`, one too small to validate no `validation`."""

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    inputs: Inputs

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """Of each split how many examples it has, and a digest of its `sample`."""
        content = {}
        for name in ("train", "validation", "test"):
            if (split := getattr(self, name)) is not None:
                arrays = "".join(f"{key}{digest_of(array)}" for key, array in sorted(split.sample().items()))
                digest = hashlib.sha256(arrays.encode()).hexdigest()[:16]
                content[name] = f"{split.size:,} examples, sha256 {digest}"
        return content


def load_dataset(
    config: "DataConfig | TextConfig | PairsConfig", model_shape: tuple[int, ...], inputs: Inputs | None = None
) -> Dataset:
    """The data set of the settings. `model_shape` gives the size to which images of varying size are brought.

    `inputs` are those of a run that is read back: its vocabulary then stands, whatever is read.
    """
    from train.config import DataConfig, LabelledTextConfig, PairsConfig, TextConfig
    from train.data import digits, folder, pairs, text, tfds

    kind = "image" if isinstance(config, DataConfig) else "pair" if isinstance(config, PairsConfig) else "text"
    if inputs is not None and inputs.kind != kind:
        raise ZooError(f"the run takes {inputs.kind}s, not {kind}s such as {config.path or config.name}")
    known: Any = inputs
    if isinstance(config, PairsConfig):
        return pairs.load_pairs(config, known)
    if isinstance(config, LabelledTextConfig):
        return text.load_labelled(config, known)
    if isinstance(config, TextConfig):
        return text.load_stream(config, known)
    side = config.image_size
    size = (side, side) if side else (model_shape[0], model_shape[1])
    if config.path is not None:
        name, splits, labels = folder.load(config.path, size)
    elif config.name == "digits":
        name, splits, labels = digits.load(size if side else None)
    else:
        name, splits, labels = tfds.load(config.name, config.tfds_dir(), size, resize=side is not None)
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        train, validation = hold_out(train, config.validation_fraction)
    if config.train_examples is not None:
        if config.train_examples > train.size:
            raise ZooError(f"data.train-examples is {config.train_examples}, but {name} has {train.size} to train on")
        train = first(train, config.train_examples)
    shape, mean, std = statistics(train)
    return Dataset(name, train, validation, splits.get("test"), ImageInputs(shape, mean, std, tuple(labels)))


def hold_out(split: Any, fraction: float) -> tuple[Any, Any]:
    """The split without its last `fraction` in index order, and that part (None where it is empty)."""
    held = int(split.size * fraction)
    if held == 0:
        return split, None
    cut = split.size - held
    if isinstance(split, ArraySplit):
        return first(split, cut), ArraySplit({name: array[cut:] for name, array in split.arrays.items()})
    return first(split, cut), LazySplit(held, split.decode, split.start + cut)


def first(split: Any, size: int) -> Any:
    """The first `size` examples of a split."""
    if isinstance(split, ArraySplit):
        return ArraySplit({name: array[:size] for name, array in split.arrays.items()})
    return LazySplit(size, split.decode, split.start)


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
