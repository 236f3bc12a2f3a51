"""Positions in a Transformer: sinusoids, rotations, and buckets of distances."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.ops.precision import at_least_float32


def sinusoids(places: jax.Array, width: int, dtype: Any = jnp.float32) -> jax.Array:
    """[..., width] in `dtype`, computed in float32 or more, for int32 positions [...] (Vaswani et al. 2017, section
    3.5): sines in the first half of the features, cosines in the second, as in the authors' code (the paper interleaves
    them)."""
    wide = at_least_float32(dtype)
    rates = np.exp(-math.log(10_000.0) * np.arange(width // 2) / max(width // 2 - 1, 1)).astype(wide)
    angles = places[..., None].astype(wide) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


class Rotary(NamedTuple):
    """Cosines and sines, [B or 1, T, D / 2] in float32 or more, for the positions of T tokens."""

    cos: jax.Array
    sin: jax.Array


class RotaryScaling(NamedTuple):
    """Llama 3's scaling of slow rotations: those with fewer than `low` turns over `original` tokens are slowed by
    `factor`, those with more than `high` are unchanged, those in between are interpolated."""

    factor: float
    low: float
    high: float
    original: int


def rotary(
    places: jax.Array, width: int, theta: float, scaling: RotaryScaling | None = None, dtype: Any = jnp.float32
) -> Rotary:
    """Rotations (Su et al. 2021) for heads of `width` features at positions `places` int32 [B or 1, T]: float32, for a
    computation in float64 float64."""
    rates = theta ** (-np.arange(0, width, 2) / width)
    if scaling is not None:
        turns = scaling.original * rates / (2 * np.pi)
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        rates = rates * (kept + (1 - kept) / scaling.factor)
    wide = at_least_float32(dtype)
    angles = places[..., None].astype(wide) * rates.astype(wide)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, by: Rotary) -> jax.Array:
    """x [B, T, N, D] rotated in the planes of features (i, i + D / 2), as in Hugging Face's Llama."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    first, second = jnp.split(x.astype(at_least_float32(x)), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def distance_buckets(ahead: jax.Array, buckets: int, furthest: int, both_ways: bool) -> jax.Array:
    """T5's bucket (Raffel et al. 2020, section 2.1) of a key `ahead` positions after its query, int32 of the same
    shape.

    Half of the buckets hold one distance each, the others grow logarithmically up to `furthest`. With `both_ways` half
    of all buckets are for later keys; else later keys have distance 0.
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
