"""Exact GELU, x times the normal distribution's P(X <= x) (Hendrycks and Gimpel 2016)."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def gelu(x: jax.Array) -> jax.Array:
    """`jax.nn.gelu(x, approximate=False)`; in float32 on CPU by erf, which is cheaper than JAX's erfc.

    They differ by rounding, relative to the largest value: erf keeps fewer digits for very negative x.
    """
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))
