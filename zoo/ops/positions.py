"""Positions in a Transformer: sinusoids, rotations, and buckets of distances."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.ops.precision import at_least_float32


def sinusoids(places: jax.Array, width: int, dtype: Any = jnp.float32, slowest: bool = True) -> jax.Array:
    """[..., width] in `dtype`, computed in float32 or more, for int32 positions [...] (Vaswani et al. 2017, section
    3.5): sines in the first half of the features, cosines in the second, as in the authors' code (the paper interleaves
    them). Rates fall from 1 to 1 / 10000, as in that code too; without `slowest` that would be the next one, as in the
    paper."""
    wide = at_least_float32(dtype)
    steps = max(width // 2 - slowest, 1)
    rates = np.exp(-math.log(10_000.0) * np.arange(width // 2) / steps).astype(wide)
    angles = places[..., None].astype(wide) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


class Rotary(NamedTuple):
    """Cosines and sines, [B or 1, T, D / 2] in float32 or more, for the positions of T tokens."""

    cos: jax.Array
    sin: jax.Array


class Llama3Scaling(NamedTuple):
    """Llama 3's scaling of slow rotations: those with fewer than `low` turns over `original` tokens are slowed by
    `factor`, those with more than `high` are unchanged, those in between are interpolated."""

    factor: float
    low: float
    high: float
    original: int

    def __call__(self, rates: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        turns = self.original * rates / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return rates * (kept + (1 - kept) / self.factor), 1.0


class LinearScaling(NamedTuple):
    """All rotations are slowed by `factor` (Chen et al. 2023, position interpolation)."""

    factor: float

    def __call__(self, rates: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        return rates / self.factor, 1.0


class YarnScaling(NamedTuple):
    """YaRN (Peng et al. 2023, section 3.2): rotations with more than `fast` turns over `original` tokens are unchanged,
    those with fewer than `slow` are slowed by `factor`, with a linear ramp between the features where that is so (whole
    features with `whole`); queries and keys are multiplied by `stretch`."""

    factor: float
    original: int
    fast: float
    slow: float
    stretch: float
    whole: bool = True

    def __call__(self, rates: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        width = 2 * len(rates)
        low, high = (
            width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.fast, self.slow)
        )
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        slowed = np.clip((np.arange(len(rates)) - low) / max(high - low, 1e-3), 0, 1)
        return rates * (1 - slowed + slowed / self.factor), self.stretch


RotaryScaling = Llama3Scaling | LinearScaling | YarnScaling


def rotary(
    places: jax.Array, width: int, theta: float, scaling: RotaryScaling | None = None, dtype: Any = jnp.float32
) -> Rotary:
    """Rotations (Su et al. 2021) of `width` features at positions `places` int32 [B or 1, T]: float32, for a
    computation in float64 float64."""
    rates, stretch = theta ** (-np.arange(0, width, 2) / width), 1.0
    if scaling is not None:
        rates, stretch = scaling(rates, theta)
    wide = at_least_float32(dtype)
    angles = places[..., None].astype(wide) * rates.astype(wide)
    return Rotary(jnp.cos(angles) * stretch, jnp.sin(angles) * stretch)


def rotate(x: jax.Array, by: Rotary) -> jax.Array:
    """x [B, T, N, D] rotated in the planes of features (i, i + D / 2), as in Hugging Face's Llama; of more features
    than `by` has rotations for, the last ones stay."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    rest = x[..., 2 * cos.shape[-1] :]
    x = x[..., : 2 * cos.shape[-1]]
    first, second = jnp.split(x.astype(at_least_float32(x)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


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
