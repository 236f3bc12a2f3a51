"""Images in which objects are found: whole images in a frame of one size, and boxes from the frame to the image."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.inputs.image_file import open_image

FILL = 128  # the pixels of a frame beside the image


@dataclasses.dataclass(frozen=True)
class Framed:
    """An image in its frame: `pixels` uint8 [height, width, C]; `size`, height and width of the part that the image
    fills, from the top left; `scale`, pixels of the frame for one of the image, which has the size `of`."""

    pixels: np.ndarray
    size: tuple[int, int]
    scale: float
    of: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class DetectionInputs(ImageInputs):
    """Images scaled, larger or smaller, to fit into a frame of `shape`, whose rest is grey; normalised by `mean` and
    `std`. `labels` are the classes of objects."""

    kind: ClassVar[str] = "detection"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop is not None or self.squash:
            raise ZooError("inputs of kind detection show whole images: leave crop and squash out")

    def framed(self, raw: Any) -> Framed:
        """A file's path, its bytes, a PIL image or an array in its frame; ZooError for anything that is no image."""
        from PIL import Image

        height, width, channels = self.shape
        image = open_image(raw, channels, self.range)
        of, scale = (image.height, image.width), min(height / image.height, width / image.width)
        size = max(round(of[0] * scale), 1), max(round(of[1] * scale), 1)
        if size != of:
            image = image.resize((size[1], size[0]), Image.Resampling[self.interpolation.upper()])
        pixels = np.full(self.shape, FILL, np.uint8)
        pixels[: size[0], : size[1]] = np.asarray(image, np.uint8).reshape(*size, channels)
        return Framed(pixels, size, scale, of)

    def pixels(self, raw: Any) -> np.ndarray:
        return self.framed(raw).pixels

    def batch(self, raws: Sequence[Any]) -> dict[str, np.ndarray]:
        """Several images: `image` uint8 [n, height, width, channels], `size` float32 [n, 2], the part of each frame
        that its image fills, and `scale` float32 [n], pixels of the frame for one of the image."""
        return self.of_frames([self.framed(raw) for raw in raws])

    @staticmethod
    def of_frames(frames: Sequence[Framed]) -> dict[str, np.ndarray]:
        """What `batch` gives, of images in their frames."""
        return {
            "image": np.stack([frame.pixels for frame in frames]),
            "size": np.array([frame.size for frame in frames], np.float32),
            "scale": np.array([frame.scale for frame in frames], np.float32),
        }

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.normalize(batch["image"]),), {"sizes": batch["size"]}
