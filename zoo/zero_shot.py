"""Classes by their descriptions: a CLIP and some labels are a classifier of images, without training."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.inputs.image_text import ImageTextInputs
from zoo.run import Run
from zoo.transformer.clip import CLIP

TEMPLATE = "a photo of a {}."  # Radford et al. 2021, section 3.1.4


class ZeroShot(nn.Module):
    """Images [B, image_size, image_size, C] to logits [B, num_classes], scores with the parameter `texts`
    [embedding_size, num_classes], vectors of length 1."""

    clip: CLIP
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shape = self.clip.embedding_size, self.num_classes
        texts = self.param("texts", nn.initializers.normal(shape[0] ** -0.5), shape, jnp.float32)
        vectors = self.clip.encode_image(x, train)
        scale = jnp.exp(self.clip.log_scale.astype(vectors.dtype))
        return (scale * (vectors @ texts.astype(vectors.dtype))).astype(self.clip.dtype)


def zero_shot(run: Any, labels: Sequence[str], template: str = TEMPLATE) -> Run:
    """The classifier of images by a CLIP, as `zoo.load` gives it, whose classes are the `labels`, each described by the
    template with the label for its {}.

    ZooError for another model, for no labels or a label twice, and for a template without {}.
    """
    model, variables, inputs = run
    if not isinstance(model, CLIP) or not isinstance(inputs, ImageTextInputs):
        raise ZooError(f"labels are described to a CLIP, not to {type(model).__name__}")
    if not labels or len(set(labels)) < len(labels):
        raise ZooError(f"labels must be one or more, each once, not {', '.join(map(repr, labels)) or 'none'}")
    if "{}" not in template:
        raise ZooError(f"the template must have {{}} where the label goes, not {template!r}")
    tokens, lengths = inputs.texts([template.replace("{}", label) for label in labels])
    texts: Any = model.apply(variables, tokens, lengths, method="encode_text")
    params = {"clip": variables["params"], "texts": texts.T}
    images = dataclasses.replace(inputs.image, labels=tuple(labels))
    return Run(ZeroShot(model, len(labels)), {"params": params}, images)
