"""Images: files and uint8 arrays to the normalised float32 that a model was trained on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs
from zoo.inputs.image_file import Interpolation, Margin, fit, open_image

MOST_SIDE = 2**14  # pixels per side of a model's input
MOST_VALUE = 1e30  # of a pixel


@dataclasses.dataclass(frozen=True)
class ImageInputs(Inputs):
    """Images of `shape` (height, width, channels), normalised by the training set's `mean` and `std` per channel.

    `mean` and `std` are in units of the full range, 0 to 1. `labels` names the classes in the order of the logits.
    `range` are the two values that become 0 and 255 where an image has more than 8 bits per channel, such as (0, 4095)
    for 12 bits; without it those of 16 bits are read as 0 to 65535. Images of 8 bits are 0 to 255.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    exclusive: bool = True  # whether an image has one label, or any number of them
    range: tuple[float, float] | None = None
    crop: float | None = None  # the share of the resized image that is kept; default: it is resized to cover the shape
    interpolation: Interpolation = "bilinear"
    squash: bool = False  # resize without regard to the aspect ratio
    margin: Margin = "nearest"  # how half a pixel beside a `crop` is rounded: as by torchvision, or as by transformers

    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        for name in ("shape", "mean", "std", "labels"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ZooError(f"{name} must be a list, not {getattr(self, name)!r:.80}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sides = all(type(n) is int and 1 <= n <= MOST_SIDE for n in self.shape)
        if not sides or not all(math.isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise ZooError(f"shape {self.shape}, mean {self.mean} and std {self.std} do not describe images")
        if self.range is not None:
            object.__setattr__(self, "range", checked_range("range", self.range))
        if self.crop is not None and not (isinstance(self.crop, float | int) and 0.1 <= self.crop <= 1):
            raise ZooError(f"crop must be between 0.1 and 1, not {self.crop!r}")
        known = self.interpolation in get_args(Interpolation) and self.margin in get_args(Margin)
        if not known or not isinstance(self.squash, bool):
            settings = f"interpolation {self.interpolation!r}, squash {self.squash!r} and margin {self.margin!r}"
            raise ZooError(f"{settings} do not describe images")
        if not all(isinstance(label, str) for label in self.labels):
            raise ZooError(f"labels must be strings, not {self.labels!r:.80}")
        if len(self.shape) != 3 or len(self.mean) != self.shape[-1] or len(self.std) != self.shape[-1]:
            raise ZooError(f"shape {self.shape} does not fit mean {self.mean} and std {self.std}: one per channel")

    def encode(self, raw: Any) -> np.ndarray:
        """A file's path, its bytes, a PIL image or an array [h, w] or [h, w, c] to float32 [height, width, channels].

        Images are turned upright; other sizes are resized by the shorter side and center-cropped, or squashed. An array
        is uint8, uint16, bool, or of any numbers where `range` is set. ZooError for anything that is not an image.
        """
        return np.asarray(self.normalize(self.pixels(raw)))

    def pixels(self, raw: Any) -> np.ndarray:
        """`encode` before normalisation: uint8 [height, width, channels]."""
        if isinstance(raw, np.ndarray) and raw.shape == self.shape and raw.dtype == np.uint8:
            return raw
        image = open_image(raw, self.shape[-1], self.range)
        return fit(image, self.shape[:2], self.crop, self.interpolation, self.squash, self.margin)

    def normalize(self, pixels: Any) -> Any:
        """uint8 [..., C] to float32, (x / 255 - mean) / std; for NumPy and JAX arrays, also inside jit."""
        scale = 1 / (255 * np.asarray(self.std, np.float32))
        return pixels.astype(np.float32) * scale - np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)

    def batch(self, raws: Sequence[Any]) -> dict[str, np.ndarray]:
        """Several images, as `encode` takes them: `image` uint8 [n, height, width, channels]."""
        return {"image": np.stack([self.pixels(raw) for raw in raws])}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.normalize(batch["image"]),), {}

    def decode(self, array: Any) -> np.ndarray:
        """The inverse of `encode`: normalised float32 [..., C] to uint8."""
        unit = np.asarray(array) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: images float32 [1, height, width, channels]."""
        return (jax.ShapeDtypeStruct((1, *self.shape), np.dtype(np.float32)),), {}


def checked_range(name: str, limits: Any) -> tuple[float, float]:
    """Two numbers, the first below the second; ZooError for anything else."""
    numbers = isinstance(limits, list | tuple) and len(limits) == 2 and all(type(n) in (int, float) for n in limits)
    if not numbers or not -MOST_VALUE <= limits[0] < limits[1] <= MOST_VALUE:
        raise ZooError(f"{name} must be two numbers, the lower one first, not {limits!r:.80}")
    return limits[0], limits[1]
