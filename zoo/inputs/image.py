"""Images: files and uint8 arrays to the normalised float32 that a model was trained on."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs

MOST_PIXELS = 2**27  # in a file
MOST_SIDE = 2**14  # pixels per side of a model's input
MOST_STRETCHED = 16  # the largest aspect ratio relative to `size`; longer images are cropped before resizing


@dataclasses.dataclass(frozen=True)
class ImageInputs(Inputs):
    """Images of `shape` (height, width, channels), normalised by the training set's `mean` and `std` per channel.

    `mean` and `std` are in units of the full range, 0 to 1. `labels` names the classes in the order of the logits.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    exclusive: bool = True  # whether an image has one label, or any number of them

    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        for name in ("shape", "mean", "std", "labels"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ZooError(f"{name} must be a list, not {getattr(self, name)!r:.80}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sides = all(type(n) is int and 1 <= n <= MOST_SIDE for n in self.shape)
        if not sides or not all(math.isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise ZooError(f"shape {self.shape}, mean {self.mean} and std {self.std} do not describe images")
        if not all(isinstance(label, str) for label in self.labels):
            raise ZooError(f"labels must be strings, not {self.labels!r:.80}")
        if len(self.shape) != 3 or len(self.mean) != self.shape[-1] or len(self.std) != self.shape[-1]:
            raise ZooError(f"shape {self.shape} does not fit mean {self.mean} and std {self.std}: one per channel")

    def encode(self, raw: Any) -> np.ndarray:
        """A file's path, a PIL image or a uint8 array [h, w] or [h, w, c] to float32 [height, width, channels].

        Other sizes are resized by the shorter side and center-cropped. ZooError for anything that is not an image.
        """
        return np.asarray(self.normalize(self.pixels(raw)))

    def pixels(self, raw: Any) -> np.ndarray:
        """`encode` before normalisation: uint8 [height, width, channels]."""
        if isinstance(raw, np.ndarray) and raw.shape == self.shape and raw.dtype == np.uint8:
            return raw
        return fit(open_image(raw, self.shape[-1]), self.shape[:2])

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


def open_image(raw: Any, channels: int) -> Any:
    """A path, a uint8 array or a PIL image as a PIL image with `channels` (1 or 3) channels; ZooError if it is not an
    image.

    Takes the first frame of an animation, applies the camera's rotation, puts transparent pixels over white, and
    reduces 16 bits per channel to 8.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ZooError("reading images needs Pillow; install it with: pip install 'flaxzoo[image]'") from None
    if channels not in (1, 3):
        raise ZooError(f"images from files have 1 or 3 channels; the model needs {channels}")
    if isinstance(raw, np.ndarray):
        if raw.dtype != np.uint8 or not (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[-1] in (1, 3))):
            raise ZooError(f"an image array must be uint8 [h, w] or [h, w, 1 or 3], not {raw.dtype} {raw.shape}")
        image = Image.fromarray(raw[..., 0] if raw.ndim == 3 and raw.shape[-1] == 1 else raw)
    elif isinstance(raw, str | os.PathLike):
        try:
            image = Image.open(raw)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            image.load()
            image = ImageOps.exif_transpose(image)
        except FileNotFoundError:
            raise ZooError(f"no image file {str(raw)!r}") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ZooError(f"{str(raw)!r} is not a readable image: {error}") from None
    elif isinstance(raw, Image.Image):
        image = raw
    else:
        raise ZooError(f"an image must be a path, a uint8 array or a PIL image, not {type(raw).__name__}")
    if image.mode[0] in "IF":  # 32 bits, or 16 bits that Pillow opens as 32
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ZooError(f"{_named(raw)} has pixels of 32 bits (mode {image.mode}); save it with 8 or 16 per channel")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _named(raw: Any) -> str:
    return repr(str(raw)) if isinstance(raw, str | os.PathLike) else "the image"


def fit(image: Any, size: tuple[int, int]) -> np.ndarray:
    """A PIL image to uint8 [height, width, C]: resized until it covers `size`, then center-cropped."""
    from PIL import Image

    height, width = size
    across, down = (
        MOST_STRETCHED * max(image.height * width // height, 1),
        MOST_STRETCHED * max(image.width * height // width, 1),
    )
    if image.width > across or image.height > down:
        left, top = max(image.width - across, 0) // 2, max(image.height - down, 0) // 2
        image = image.crop((left, top, min(left + across, image.width), min(top + down, image.height)))
    scale = max(height / image.height, width / image.width)
    if (image.height, image.width) != size:
        scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
