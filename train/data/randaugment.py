"""RandAugment (Cubuk, Zoph, Shlens and Le 2020): operations drawn at random, all of one magnitude, inside the step.

The paper's fourteen operations with torchvision's ranges. Images are float32 [H, W, C] of 0 to 255.
"""

import jax
import jax.numpy as jnp

from train.data.warp import affine

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOUR = ("identity", "autocontrast", "equalize", "solarize", "posterize", "saturation", "contrast", "brightness")
OPERATIONS = (*COLOUR, "sharpness", *GEOMETRIC)


def rand_augment(key: jax.Array, image: jax.Array, layers: int, magnitude: int) -> jax.Array:
    """`layers` operations, one after the other, each drawn evenly; signs are drawn too."""
    for layer_key in jax.random.split(key, layers):
        which_key, sign_key = jax.random.split(layer_key)
        which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        image = operation(image, which, sign * magnitude / 30)
    return image


def operation(image: jax.Array, which: jax.Array | int, strength: jax.Array | float) -> jax.Array:
    """Operation number `which` of OPERATIONS at a strength of -1 to 1.

    All of them are computed and one is taken, as any branch is under `vmap`; the five geometric ones share one warp.
    """
    geometric = len(OPERATIONS) - len(GEOMETRIC)
    coloured = jnp.stack([image, *_coloured(image, strength)])[jnp.minimum(which, geometric - 1)]
    matrix, shift = _moves(image.shape, strength)
    place = jnp.maximum(which - geometric, 0)
    return jnp.where(which < geometric, coloured, affine(image, matrix[place], shift[place]))


def _coloured(image: jax.Array, strength: jax.Array | float) -> list[jax.Array]:
    positive, factor = jnp.abs(strength), 1 + 0.9 * strength
    low, high = jnp.min(image, axis=(0, 1)), jnp.max(image, axis=(0, 1))
    stretched = jnp.where(high > low, (image - low) * 255 / jnp.maximum(high - low, 1e-6), image)
    threshold = 255 * (1 - positive)
    bits = 2.0 ** jnp.round(4 * positive)  # 8 to 4 bits are kept
    weights = jnp.array([0.299, 0.587, 0.114]) if image.shape[-1] == 3 else jnp.full(image.shape[-1], 1.0)
    grey = jnp.sum(image * weights / jnp.sum(weights), axis=-1, keepdims=True)
    mean = jnp.mean(grey)
    return [
        stretched,
        equalize(image),
        jnp.where(image >= threshold, 255 - image, image),
        jnp.floor(image / bits) * bits,
        _blend(grey, image, factor),
        _blend(mean, image, factor),
        _blend(0.0, image, factor),
        _blend(_smooth(image), image, factor),
    ]


def _blend(plain: jax.Array | float, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """`plain` at 0, the image at 1, beyond it at more."""
    return jnp.clip(plain + factor * (image - plain), 0, 255)


def equalize(image: jax.Array) -> jax.Array:
    """Each channel's values spread so that all are as frequent as the ties allow, in whole numbers as PIL does it."""

    def channel(plane: jax.Array) -> jax.Array:
        levels = jnp.clip(jnp.round(plane), 0, 255).astype(jnp.int32)
        counts = jnp.zeros(256).at[levels.ravel()].add(1.0)
        below = jnp.cumsum(counts) - counts
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (plane.size - last) // 255
        spread = (below[levels] + step // 2) // jnp.maximum(step, 1.0)
        return jnp.where(step > 0, jnp.minimum(spread, 255.0), plane)

    return jax.vmap(channel, -1, -1)(image)


def _smooth(image: jax.Array) -> jax.Array:
    """Each inner pixel replaced by the mean of its 3x3 neighbourhood, itself five times (PIL's SMOOTH)."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = 4 * image + sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    inner = jnp.zeros((height, width, 1), bool).at[1:-1, 1:-1].set(True)
    return jnp.where(inner, total / 13, image)


def _moves(shape: tuple[int, ...], strength: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """The geometric operations' matrices [5, 2, 2] and shifts [5, 2], in the order of GEOMETRIC."""
    angle, shear = jnp.deg2rad(30.0) * strength, 0.3 * strength
    same, zero = jnp.eye(2), jnp.zeros(2)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    shear_x, shear_y = same.at[1, 0].set(shear), same.at[0, 1].set(shear)
    far = 150 / 331 * strength  # of a side
    along_x, along_y = jnp.array([0.0, 1.0]) * far * shape[1], jnp.array([1.0, 0.0]) * far * shape[0]
    return jnp.stack([turn, shear_x, shear_y, same, same]), jnp.stack([zero, zero, zero, along_x, along_y])
