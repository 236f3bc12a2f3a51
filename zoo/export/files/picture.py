"""Image files as the array of the program's argument `image`, as in training."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps
from program import ABOUT


def picture(path: str) -> np.ndarray:
    """A file as [1, height, width, channels]: uint8 of any size, or where the program does not resize, normalised."""
    about = ABOUT["inputs"].get("image", ABOUT["inputs"])
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    if about["shape"][2] in (1, 3):  # no channel for transparency
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(["L", "LA", "RGB", "RGBA"][about["shape"][2] - 1])
    if ABOUT["preprocess"]:
        return np.asarray(image, np.uint8).reshape(1, image.height, image.width, -1)
    pixels = np.asarray(fit(image, about), np.float32).reshape(about["shape"])
    return ((pixels / 255 - np.float32(about["mean"])) / np.float32(about["std"]))[None]


def fit(image: Any, about: dict[str, Any]) -> Any:
    """The image resized to cover the program's size, or that size / crop, and center-cropped; or squashed."""
    (height, width), crop, half = about["shape"][:2], about["crop"], lambda margin: margin // 2
    if crop is None and not about["squash"]:
        scale = max(height / image.height, width / image.width)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    else:
        across, down = int(width / (crop or 1)), int(height / (crop or 1))
        half = (lambda margin: margin // 2) if about["margin"] == "down" else (lambda margin: round(margin / 2))
        if about["squash"]:
            size = across, down
        elif image.width * down <= image.height * across:
            size = across, max(int(across * image.height / image.width), down)
        else:
            size = max(int(down * image.width / image.height), across), down
    if size != image.size:
        image = image.resize(size, Image.Resampling[about["interpolation"].upper()])
    left, top = half(image.width - width), half(image.height - height)
    return image.crop((left, top, left + width, top + height))
