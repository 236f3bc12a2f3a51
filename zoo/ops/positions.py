"""How a Transformer knows where a token stands: sinusoids, rotations, distances in buckets."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def sinusoids(places: jax.Array, width: int) -> jax.Array:
    """float32 [..., width] of int32 places [...] (Vaswani et al. 2017, section 3.5): sines in the first half of the
    features, cosines in the second, as their own code has it (the paper's alternate, which is another order)."""
    rates = np.exp(-math.log(10_000.0) * np.arange(width // 2) / max(width // 2 - 1, 1)).astype(np.float32)
    angles = places[..., None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


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


def distance_buckets(ahead: jax.Array, buckets: int, furthest: int, both_ways: bool) -> jax.Array:
    """T5's bucket (Raffel et al. 2020, section 2.1) of a key that stands `ahead` of its query, int32 like `ahead`.

    Half of the buckets are a distance each, the others grow with its logarithm up to `furthest`; with `both_ways` half
    of them all are for keys that come later, else those are at distance 0.
    """
    start = jnp.zeros_like(ahead)
    if both_ways:
        buckets //= 2
        start = jnp.where(ahead > 0, buckets, 0)
        distance = jnp.abs(ahead)
    else:
        distance = jnp.maximum(-ahead, 0)
    near = buckets // 2
    grown = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / near) / math.log(furthest / near)
    far = jnp.minimum(near + (grown * (buckets - near)).astype(jnp.int32), buckets - 1)
    return start + jnp.where(distance < near, distance, far)
