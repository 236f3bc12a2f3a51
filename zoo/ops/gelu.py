"""GELU, x times the normal distribution's P(X <= x), not approximated (Hendrycks and Gimpel 2016)."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def gelu(x: jax.Array) -> jax.Array:
    """`jax.nn.gelu(x, approximate=False)`; float32 on a CPU by erf, which is less work than JAX's erfc.

    The two differ by rounding, relative to the largest value: of far negative x, erf leaves fewer digits.
    """
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))
