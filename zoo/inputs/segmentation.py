"""Images whose pixels have classes: read at their own size, predicted by tiles of the model's."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.inputs.image_file import open_image


@dataclasses.dataclass(frozen=True)
class SegmentationInputs(ImageInputs):
    """`labels` are the classes of pixels, the background first; `shape` is that of a tile: the images that the model
    was trained on, and the pieces in which larger ones are predicted (`zoo.ops.tiles`). Nothing is resized."""

    kind: ClassVar[str] = "segmentation"

    def pixels(self, raw: Any) -> np.ndarray:
        """`encode` before normalisation: uint8 [h, w, channels], of the image's own size."""
        if isinstance(raw, np.ndarray) and raw.ndim == 3 and raw.shape[-1] == self.shape[-1] and raw.dtype == np.uint8:
            return raw
        pixels = np.asarray(open_image(raw, self.shape[-1], self.range), np.uint8)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def batch(self, raws: Sequence[Any]) -> dict[str, np.ndarray]:
        """Several images of one size: `image` uint8 [n, h, w, channels]; ZooError for images of different sizes."""
        images = [self.pixels(raw) for raw in raws]
        if len(sizes := {image.shape for image in images}) > 1:
            raise ZooError(f"a batch to segment has images of one size, not of {len(sizes)}; give them one by one")
        return {"image": np.stack(images)}
