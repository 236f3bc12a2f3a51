"""The product of a dense layer, in a form with a fast gradient on CPU.

The kernel gradient of x [B, T, F] @ kernel [F, G] sums over two axes, for which XLA's CPU backend first transposes the
output's gradient, in a loop that takes longer than the product: a third of the whole step of a GPT with 4 layers of
width 128. With rows [B T, F] nothing is transposed. The arithmetic is the same, and programs for other platforms are
unchanged. A sequence that is sharded over devices keeps its axes: as rows it would have to be gathered.
"""

import math
from typing import Any

import jax
from jax import lax

from zoo import partition


def dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, *args: Any, **settings: Any) -> jax.Array:
    """`lax.dot_general` of x [..., F] and kernel [F, out], for `nn.Dense(dot_general=...)`; on CPU over rows."""
    if x.ndim < 3 or jax.default_backend() != "cpu" or partition.axes_of("context", x.shape[1]):
        return lax.dot_general(x, kernel, dimensions, *args, **settings)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    product = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), *args, **settings)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])
