"""The classes of an image's pixels, for images of any size."""

from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError
from zoo.ops.tiles import tiled
from zoo.run import Run

# Of classes in a mask's palette: the first black, then colours that are told apart, also by the colour-blind (Okabe
# and Ito 2008); more classes repeat them, darker each time.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


class Segmenter:
    """Probabilities of the classes of each pixel. A program is compiled for each size of images."""

    def __init__(self, run: Run):
        inputs: Any = run.inputs
        if inputs.kind != "segmentation":
            raise ZooError(f"a run that segments images is needed; this one takes {inputs.kind}s")
        self.inputs, model = inputs, run.model

        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            def apply(tile: jax.Array) -> Any:
                return model.apply(variables, inputs.normalize(tile))

            return jax.nn.softmax(tiled(apply, images, inputs.shape[:2], getattr(model, "margin", 0)))

        self.variables, self._apply = run.variables, jax.jit(probabilities)

    def __call__(self, raw: Any) -> np.ndarray:
        """An image, as `encode` of the inputs takes it, to float32 [h, w, classes], at its own size."""
        return np.asarray(self._apply(self.variables, self.inputs.pixels(raw)[None])[0])


def palette(classes: int) -> list[int]:
    """Red, green and blue of each class, one after the other, as Pillow's `putpalette` takes them."""
    colours = [(0, 0, 0)]
    for number in range(classes - 1):
        darker, place = divmod(number, len(COLOURS))
        colours.append(tuple(round(value * 0.7**darker) for value in COLOURS[place]))  # type: ignore[arg-type]
    return [value for colour in colours for value in colour]
