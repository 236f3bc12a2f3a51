"""Images of any size as a model takes them, in JAX: what `zoo.inputs.image_file.fit` does with Pillow.

The filters are Pillow's (triangle, cubic with a = -1/2, Lanczos of 3 lobes, widened where an image shrinks). What
differs: Pillow rounds to 8 bits after the columns and again after the rows, here it is done once; and an image more
than 16 times as long as the model's is not cropped first. Decoding, orientation and transparency are the caller's.
"""

import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.inputs import ImageInputs

METHODS = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}


def check(inputs: ImageInputs) -> None:
    """ZooError for an interpolation that JAX does not have."""
    if inputs.interpolation not in METHODS:
        raise ZooError(
            f"a program resizes by {', '.join(METHODS)}, not by {inputs.interpolation!r}; export without --preprocess"
        )


def preprocess(inputs: ImageInputs, pixels: jax.Array) -> jax.Array:
    """uint8 [B, h, w, C] to normalised float32 [B, height, width, C]; h and w may be symbolic."""
    return inputs.normalize(resized(inputs, pixels))


def resized(inputs: ImageInputs, pixels: jax.Array) -> jax.Array:
    """uint8 [B, h, w, C] to whole numbers from 0 to 255, float32 [B, height, width, C], resized and center-cropped as
    the inputs say."""
    old, new = (jnp.asarray(side, jnp.float32) for side in pixels.shape[1:3]), inputs.shape[:2]
    old_height, old_width = old
    scaled = _scaled(inputs, old_height, old_width)
    scales = jnp.stack([scaled[0] / old_height, scaled[1] / old_width])
    margins = [_margin(inputs, side, size) for side, size in zip(scaled, new, strict=True)]
    shape = (pixels.shape[0], *new, pixels.shape[3])
    image = jax.image.scale_and_translate(
        pixels.astype(jnp.float32), shape, (1, 2), scales, -jnp.stack(margins), METHODS[inputs.interpolation]
    )
    return jnp.clip(jnp.round(image), 0, 255)


def _scaled(inputs: ImageInputs, height: jax.Array, width: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The size of the whole image after resizing, before it is cropped."""
    across, down = inputs.shape[1], inputs.shape[0]
    if inputs.crop is None and not inputs.squash:
        scale = jnp.maximum(down / height, across / width)
        return jnp.maximum(down, jnp.round(height * scale)), jnp.maximum(across, jnp.round(width * scale))
    down, across = int(down / (inputs.crop or 1)), int(across / (inputs.crop or 1))
    if inputs.squash:
        return jnp.float32(down), jnp.float32(across)
    upright = width * down <= height * across
    tall = jnp.maximum(jnp.floor(across * height / width), down)
    wide = jnp.maximum(jnp.floor(down * width / height), across)
    return jnp.where(upright, tall, down), jnp.where(upright, across, wide)


def _margin(inputs: ImageInputs, side: jax.Array, size: int) -> jax.Array:
    """What is cropped before the first pixel."""
    half = (side - size) / 2
    plain = inputs.crop is None and not inputs.squash
    return jnp.floor(half) if plain or inputs.margin == "down" else jnp.round(half)
