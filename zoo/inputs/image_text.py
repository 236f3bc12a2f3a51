"""Images and texts side by side, each as its own inputs read it: what CLIP compares."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.arrays import Example
from zoo.inputs.base import Inputs, make_part
from zoo.inputs.image import ImageInputs
from zoo.inputs.text import TextInputs


@dataclasses.dataclass(frozen=True)
class ImageTextInputs(Inputs):
    """Images, and texts about them. A raw example is an image, as `image` takes it; texts are given to `texts`."""

    image: ImageInputs
    text: TextInputs

    kind: ClassVar[str] = "image-text"
    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]

    def __post_init__(self) -> None:
        make_part(self, "image", ImageInputs)
        make_part(self, "text", TextInputs)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of an image: (height, width, channels)."""
        return self.image.shape

    def encode(self, raw: Any) -> np.ndarray:
        return self.image.encode(raw)

    def decode(self, array: Any) -> np.ndarray:
        return self.image.decode(array)

    def texts(self, raws: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [n, text.length], padded, and the number of each text's, int32 [n]."""
        batch = self.text.batch(raws)
        return batch["tokens"], batch["length"]

    def batch(self, raws: Sequence[tuple[Any, str]]) -> dict[str, np.ndarray]:
        """Pairs of an image and its text: `image` uint8 [n, height, width, channels], `tokens` and `length`."""
        return {**self.image.batch([raw for raw, _ in raws]), **self.text.batch([text for _, text in raws])}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.image.normalize(batch["image"]),), {"texts": batch["tokens"], "lengths": batch["length"]}

    def model_args(self) -> dict[str, Any]:
        return {"vocab_size": self.text.vocab_size}

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: an image, and as keywords tokens int32 [1, text.length] and their
        number int32 [1]."""
        tokens, length = (jax.ShapeDtypeStruct(shape, np.dtype(np.int32)) for shape in ((1, self.text.length), (1,)))
        return self.image.example()[0], {"texts": tokens, "lengths": length}

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "image": self.image.to_json(), "text": self.text.to_json()}
