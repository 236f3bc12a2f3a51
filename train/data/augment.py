"""Augmentation of images inside the step: pure functions, one key an example.

An example's key is folded from the step's key and its row in the global batch, so that the picture it becomes does not
depend on how the batch lies on devices.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    shift: int = 0  # pixels, each way: a random crop of the image padded by as many zeros
    flip: bool = False  # left and right, every second time
    rotate: float = 0.0  # degrees, each way
    scale: float = 0.0  # 0.1: sizes from 90 to 110 %

    def check(self) -> None:
        """ZooError for a value out of range."""
        if self.shift < 0:
            raise ZooError(f"augment.shift must be at least 0, not {self.shift}")
        if not 0 <= self.rotate <= 180:
            raise ZooError(f"augment.rotate must be between 0 and 180 degrees, not {self.rotate}")
        if not 0 <= self.scale < 1:
            raise ZooError(f"augment.scale must be in [0, 1), not {self.scale}")


def augment(config: AugmentConfig, key: jax.Array, images: jax.Array, rows: jax.Array) -> jax.Array:
    """Augments float32 images [B, H, W, C]; `rows` [B] are their places in the global batch."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
    return jax.vmap(partial(_augment_one, config))(keys, images)


def _augment_one(config: AugmentConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    affine_key, shift_key, flip_key = jax.random.split(key, 3)
    if config.rotate or config.scale:
        angle, size = jax.random.uniform(affine_key, (2,), minval=-1, maxval=1)
        image = affine(image, jnp.deg2rad(config.rotate) * angle, 1 + config.scale * size)
    if config.shift:
        start = jax.random.randint(shift_key, (2,), 0, 2 * config.shift + 1)
        pad = (config.shift, config.shift)
        padded = jnp.pad(image, (pad, pad, (0, 0)))
        image = jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)
    if config.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image


def affine(image: jax.Array, angle: jax.Array | float, size: jax.Array | float) -> jax.Array:
    """An image [H, W, C] turned by `angle` radians and scaled by `size` about its centre, sampled bilinearly.

    Zeros come in from outside.
    """
    height, width, _ = image.shape
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    rows = (jnp.cos(angle) * y - jnp.sin(angle) * x) / size + (height - 1) / 2
    columns = (jnp.sin(angle) * y + jnp.cos(angle) * x) / size + (width - 1) / 2
    return jax.vmap(lambda plane: map_coordinates(plane, [rows, columns], order=1), -1, -1)(image)
