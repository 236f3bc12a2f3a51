"""How a Transformer knows where a token stands: rotations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotary(NamedTuple):
    """Cosines and sines, float32 [B or 1, T, D / 2], of the places of T tokens."""

    cos: jax.Array
    sin: jax.Array


class RotaryScaling(NamedTuple):
    """Llama 3's stretch of the slow rotations: those of fewer than `low` turns over `original` tokens are `factor`
    times as slow, those of more than `high` stay, between them it goes over."""

    factor: float
    low: float
    high: float
    original: int


def rotary(places: jax.Array, width: int, theta: float, scaling: RotaryScaling | None = None) -> Rotary:
    """Rotations (Su et al. 2021) for heads of `width` features at `places` int32 [B or 1, T]."""
    rates = theta ** (-np.arange(0, width, 2) / width)
    if scaling is not None:
        turns = scaling.original * rates / (2 * np.pi)
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        rates = rates * (kept + (1 - kept) / scaling.factor)
    angles = places[..., None].astype(jnp.float32) * rates.astype(np.float32)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, by: Rotary) -> jax.Array:
    """x [B, T, N, D] turned in the planes of features (i, i + D / 2), as Hugging Face's Llama has them."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
