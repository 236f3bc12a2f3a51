"""The product of a dense layer, as a CPU is fast at its gradient.

The gradient by the kernel of x [B, T, F] @ kernel sums over two axes, for which XLA's CPU backend first turns all of
the output's gradient, in a loop that takes longer than the product: a third of the whole step of a GPT of 4 layers,
128 wide. Of rows [B T, F] it turns nothing. The arithmetic is the same, and other platforms compile what they did. A
sequence that is split over devices is left as it is: as rows it would have to be gathered.
"""

import math
from typing import Any

import jax
from jax import lax

from zoo import partition


def dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, *args: Any, **settings: Any) -> jax.Array:
    """`lax.dot_general` of x [..., F] and kernel [F, out], for `nn.Dense(dot_general=...)`; on a CPU, row by row."""
    if x.ndim < 3 or jax.default_backend() != "cpu" or partition.axes_of("context", x.shape[1]):
        return lax.dot_general(x, kernel, dimensions, *args, **settings)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    product = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), *args, **settings)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])
