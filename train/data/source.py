"""What all sources of data share: splits, the data set, and the protocol of a source's settings."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import numpy as np

from train.data.batches import Batches, eval_batches
from train.data.unreadable import Unreadable
from train.settings import Registered
from zoo.arrays import digest_of
from zoo.errors import ZooError
from zoo.inputs import Inputs

Arrays = dict[str, np.ndarray]
IN_MEMORY_BYTES = 2 << 30  # larger sets, decoded, are read from their files batch by batch


class TrainBatches(Protocol):
    """Batch k as a pure function of the seed and k."""

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`."""


class Split(Protocol):
    """Examples 0 to size - 1, and the batches that training and evaluation make of them."""

    @property
    def size(self) -> int: ...

    @property
    def in_memory(self) -> bool: ...

    @property
    def described(self) -> str:
        """What an evaluation counts, such as "360 examples"."""

    @property
    def rows_per_epoch(self) -> float:
        """How many rows of batches an epoch has: examples, or windows of a text."""

    def read(self, indices: np.ndarray) -> Arrays:
        """The examples of `indices` [n], stacked: arrays [n, ...] by name, such as `image` uint8 [n, H, W, C] and
        `label` int32 [n]."""

    def sample(self) -> Arrays:
        """Arrays that change where the examples do: all of them, or some of those that are read from files."""

    def batches(self, batch_size: int, seed: int, rows: np.ndarray | None = None) -> TrainBatches:
        """The training batches; of a batch a process reads its `rows` (default: all). Each has, besides the examples'
        arrays, `row` int32 [B], the place in the global batch, and `weight` float32 [B], ones."""

    def eval_steps(self, batch_size: int) -> int:
        """How many batches `eval_batches` gives."""

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
        """Every example once, in order. The last batch is padded with examples of weight 0; `row` is the example's
        number."""


class Examples:
    """A split of independent examples: the methods of `Split` that follow from `size` and `read`."""

    size: int
    read: Callable[[np.ndarray], Arrays]
    in_memory: ClassVar[bool]
    lengths: ClassVar[dict[str, np.ndarray]] = {}  # of texts in memory, by the name of the lengths' array
    labels: ClassVar[np.ndarray | None] = None  # int [n], where examples have one each and need not be read for it

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """An epoch of training: the numbers of examples, int [size]."""
        return rng.permutation(self.size)

    @property
    def described(self) -> str:
        return f"{self.size:,} examples"

    @property
    def rows_per_epoch(self) -> float:
        return self.size

    def batches(self, batch_size: int, seed: int, rows: np.ndarray | None = None) -> TrainBatches:
        return Batches(self, batch_size, seed, rows)

    def eval_steps(self, batch_size: int) -> int:
        return -(-self.size // batch_size)

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
        return eval_batches(self.read, self.size, batch_size, rows)


@dataclasses.dataclass(frozen=True)
class ArraySplit(Examples):
    """Examples as arrays in memory; reading is one gather."""

    arrays: Arrays
    in_memory = True

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(next(iter(self.arrays.values())))

    @property
    def lengths(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        return {name: self.arrays[name] for name in ("source_length", "length") if name in self.arrays}

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        return self.arrays.get("label")

    def read(self, indices: np.ndarray) -> Arrays:
        return {name: array[indices] for name, array in self.arrays.items()}

    def sample(self) -> Arrays:
        return self.arrays

    def part(self, start: int, stop: int) -> "ArraySplit":
        return ArraySplit({name: array[start:stop] for name, array in self.arrays.items()})


@dataclasses.dataclass(frozen=True)
class LazySplit(Examples):
    """Examples `start` to `start + size - 1` of a source that decodes them when asked."""

    size: int
    decode: Callable[[list[int]], Arrays]
    start: int = 0
    in_memory = False

    def read(self, indices: np.ndarray) -> Arrays:
        return self.decode([self.start + int(i) for i in indices])

    def sample(self) -> Arrays:
        return self.read(np.linspace(0, self.size - 1, min(64, self.size)).astype(int))

    def part(self, start: int, stop: int) -> "LazySplit":
        return LazySplit(stop - start, self.decode, self.start + start)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits and inputs; a set without labels for testing has no `test`, one too small to validate no `validation`."""

    name: str
    train: Any  # a Split, as the others are
    validation: Any
    test: Any
    inputs: Inputs
    notes: tuple[str, ...] = ()  # what a user should know of how the data were read, a line each
    unreadable: Unreadable | None = None  # of images: those that cannot be read

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """Of each split the number of examples, and a digest of its `sample`."""
        content = {}
        for name in ("train", "validation", "test"):
            if (split := getattr(self, name)) is not None:
                arrays = "".join(f"{key}{digest_of(array)}" for key, array in sorted(split.sample().items()))
                digest = hashlib.sha256(arrays.encode()).hexdigest()[:16]
                content[name] = f"{split.size:,} examples, sha256 {digest}"
        return content

    def split(self, name: str) -> Any:
        """The split `name`; ZooError where there is none."""
        if (found := getattr(self, name)) is None:
            has = [split for split in ("train", "validation", "test") if getattr(self, split) is not None]
            raise ZooError(f"{self.name} has no split {name} with labels; it has {', '.join(has)}")
        return found


@dataclasses.dataclass(frozen=True)
class Source(Registered):
    """The base of all sources: settings that `load` a data set."""

    package: ClassVar[str] = "train.data"
    renamed: ClassVar[dict[str, str]] = {
        "DataConfig": "ImageData",
        "TextConfig": "TextData",
        "LabelledTextConfig": "LabelledTextData",
        "PairsConfig": "PairData",
    }

    @property
    def label(self) -> str:
        """What messages call the data."""
        return str(getattr(self, "path", None) or getattr(self, "name", type(self).__name__))

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """The data set. `model_shape` is one example's, as the model was registered for it.

        `inputs` are those of a run or of weights: their vocabulary, normalisation and shape stand, and the data are
        brought to them. Where they have labels, the data's are matched to them by name (`train.data.labels`), and
        labels that they do not have are a ZooError; where they have none, the labels are the data's. Lines in
        `Dataset.notes` say what was left out, and why.
        """
        raise TypeError(f"source {type(self).__name__} has no load")

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model that cannot read these data."""

    def inputs_of_kind(self, inputs: Inputs | None, kind: str) -> Any:
        """`inputs`, or None; ZooError where they are of another kind than these data."""
        if inputs is not None and inputs.kind != kind:
            raise ZooError(f"the run takes {inputs.kind}s, not {kind}s such as {self.label}")
        return inputs


@dataclasses.dataclass(frozen=True)
class NamedSource(Source, abstract=True):
    """Settings of all sources that have a name or a path."""

    name: str = ""
    path: str | None = None
    validation_fraction: float = 0.1  # the end of train that validates, where a set has no validation split

    def check(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ZooError(f"data.validation-fraction must be in [0, 1), not {self.validation_fraction}")


@dataclasses.dataclass(frozen=True)
class TfdsSource(NamedSource, abstract=True):
    """Settings of all sources whose name may be a TFDS set's."""

    dir: str | None = None  # where TFDS sets are; default $TFDS_DATA_DIR, else ~/tensorflow_datasets

    def tfds_dir(self) -> str:
        return os.path.expanduser(self.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def hold_out(split: Any, fraction: float) -> tuple[Any, Any]:
    """The split without its last `fraction` in index order, and that part (None where it is empty)."""
    held = int(split.size * fraction)
    if held == 0:
        return split, None
    cut = split.size - held
    return split.part(0, cut), split.part(cut, split.size)
