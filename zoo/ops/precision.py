"""The precision of sums, statistics and softmax."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(*of: Any) -> Any:
    """The dtype for arithmetic on arrays or dtypes: float32 for them and for shorter ones, float64 for float64."""
    return jnp.promote_types(jnp.result_type(*of), jnp.float32)
