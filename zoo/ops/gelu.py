"""Exact GELU, x times the normal distribution's P(X <= x) (Hendrycks and Gimpel 2016)."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ops.portable import is_portable

# erf(x) / x as a quotient of polynomials in x^2, the highest power first: Eigen's and XLA's, to 1e-7 within LIMIT
ABOVE = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
BELOW = (
    *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667),
    *(0.11098505178285362, 0.49746925110067538, 1.0),
)
LIMIT = 3.7439211627767994  # where erf is 1 in float32


def gelu(x: jax.Array) -> jax.Array:
    """`jax.nn.gelu(x, approximate=False)`; in float32 on CPU by erf, which is cheaper than JAX's erfc.

    They differ by rounding, relative to the largest value: erf keeps fewer digits for very negative x.
    """
    if is_portable() and x.dtype != jnp.float64:
        wide = x.astype(jnp.float32)
        return (0.5 * wide * (1 + erf(wide * math.sqrt(0.5)))).astype(x.dtype)
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def erf(x: jax.Array) -> jax.Array:
    """`lax.erf` of float32 as sums and products."""
    x = jnp.clip(x, -LIMIT, LIMIT)
    square = x * x
    above, below = (functools.reduce(lambda total, c: total * square + c, numbers) for numbers in (ABOVE, BELOW))
    return x * above / below
