"""Objects in images by a trained detector, in pixels of the images, and pictures of them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError
from zoo.inputs.image_file import open_image
from zoo.run import Run

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075")


@dataclasses.dataclass(frozen=True)
class Found:
    """An object in an image."""

    label: str
    score: float  # 0 to 1
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image


class Detector:
    """The objects in images with a score of at least the threshold."""

    def __init__(self, run: Run, threshold: float = 0.5):
        if run.inputs.kind != "detection":
            raise ZooError(f"{type(run.model).__name__} is no detector: its inputs are {run.inputs.kind}s")
        if not 0 <= threshold <= 1:
            raise ZooError(f"the threshold must be between 0 and 1, not {threshold}")
        self.run, self.threshold, self.apply = run, threshold, jax.jit(run.model.apply)

    def __call__(self, raws: Sequence[Any]) -> list[list[Found]]:
        """Of each image (a path, bytes, a PIL image or an array) its objects, highest score first."""
        inputs: Any = self.run.inputs
        frames = [inputs.framed(raw) for raw in raws]
        batch = inputs.of_frames(frames)
        args, kwargs = inputs.arguments(batch)
        found = {name: np.asarray(x) for name, x in self.apply(self.run.variables, *args, **kwargs).items()}
        images = []
        for i, frame in enumerate(frames):
            kept = np.flatnonzero((found["labels"][i] >= 0) & (found["scores"][i] >= self.threshold))
            limits = (frame.of[1], frame.of[0]) * 2
            boxes = np.clip(found["boxes"][i][kept] / frame.scale, 0, limits)
            images.append(
                [
                    Found(inputs.labels[found["labels"][i][k]], float(found["scores"][i][k]), _corners(box))
                    for k, box in zip(kept, boxes, strict=True)
                ]
            )
        return images


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def draw(raw: Any, found: Sequence[Found], labels: Sequence[str], path: pathlib.Path) -> None:
    """Writes the image with its boxes, their labels and scores; a class has the same colour in every picture."""
    from PIL import ImageDraw, ImageFont

    image = open_image(raw, 3)
    line = max(1, round(min(image.size) / 200))
    height = max(10, min(image.size) / 40)
    font = ImageFont.load_default(size=height)
    pen = ImageDraw.Draw(image)
    for one in reversed(found):
        colour = COLOURS[labels.index(one.label) % len(COLOURS)]
        pen.rectangle(one.box, outline=colour, width=line)
        text, place = f"{one.label} {one.score:.2f}", (one.box[0] + line, max(one.box[1] - height - 2 * line, 0))
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
        pen.text(place, text, fill="white", font=font)
    image.save(path)
