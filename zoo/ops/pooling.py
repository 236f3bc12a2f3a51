"""Pooling by square windows, as in torch and Keras; max pooling has a fast gradient on CPU.

XLA computes the gradient of a windowed maximum (select-and-scatter) on CPU one element at a time. As a maximum over
strided slices, forward and backward are elementwise: 25 times faster for 2x2 windows over [64, 32, 32, 32]. Without
differentiation the window reduction stays, which halves the forward time of `simple_cnn`; so it does on other
platforms.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.errors import ZooError
from zoo.ops.portable import is_portable
from zoo.ops.precision import at_least_float32

Padding = int | Literal["SAME"]
Pads = tuple[tuple[int, int], tuple[int, int]]  # before and after the rows, and the columns


def pads_of(x: jax.Array, window: int, strides: int, padding: Padding, ceil_mode: bool) -> Pads:
    """The padding of each side of x [B, H, W, C]; ZooError if a window would hold nothing but padding, or none fits."""
    if padding != "SAME" and not (isinstance(padding, int) and 0 <= padding <= window // 2):
        raise ZooError(f"pooling takes a padding of 0 to {window // 2}, half of the window, or 'SAME', not {padding!r}")
    pads = []
    for side in x.shape[1:3]:
        if padding == "SAME":
            missing = max((-(-side // strides) - 1) * strides + window - side, 0)
            pads.append((missing // 2, missing - missing // 2))
            continue
        over = side + 2 * padding - window
        if over < 0:
            raise ZooError(f"a pooling window of {window} does not fit into {side} pixels padded by {padding}")
        more = -over % strides if ceil_mode else 0
        if over + more >= side + padding:  # as in torch, no window begins after the image
            more = 0
        pads.append((padding, padding + more))
    return pads[0], pads[1]


def max_pool(x: jax.Array, window: int, strides: int, padding: Padding = 0, ceil_mode: bool = False) -> jax.Array:
    """The maximum of each square window: [B, H, W, C] to [B, (H + 2 padding - window) // strides + 1, ..., C].

    With `ceil_mode` a last, incomplete window counts, as in torch; with `padding="SAME"` the result is
    [B, ceil(H / strides), ..., C]. Padding is minus infinity. Among equal elements the first in row-major order gets
    the gradient.
    """
    pads = pads_of(x, window, strides, padding, ceil_mode)
    if is_portable():
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf) if any(map(any, pads)) else x
        return nn.max_pool(x, window_shape=(window, window), strides=(strides, strides), padding="VALID")
    return lax.platform_dependent(
        x,
        cpu=lambda x: max_pool_on_cpu(x, window, strides, pads),
        default=lambda x: max_pool_windows(x, window, strides, pads),
    )


def avg_pool(
    x: jax.Array,
    window: int,
    strides: int,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_padding: bool = False,
) -> jax.Array:
    """The mean of each square window, of the shape that `max_pool` has, summed in float32 or more.

    The mean is over the window's pixels of the image; with `count_padding` over those of the padding too, torch's
    default, though not over those that `ceil_mode` adds.
    """
    pads = pads_of(x, window, strides, padding, ceil_mode)
    sizes, steps = (1, window, window, 1), (1, strides, strides, 1)
    total = lax.reduce_window(x.astype(at_least_float32(x)), 0.0, lax.add, sizes, steps, ((0, 0), *pads, (0, 0)))
    counts = []
    for side, (before, after) in zip(x.shape[1:3], pads, strict=True):
        starts = np.arange(0, side + before + after - window + 1, strides) - before
        first, last = 0, side
        if count_padding:
            first, last = -before, side + (after if padding == "SAME" else before)
        counts.append(np.minimum(starts + window, last) - np.maximum(starts, first))
    return (total / np.outer(*counts)[:, :, None].astype(total.dtype)).astype(x.dtype)


def max_pool_windows(x: jax.Array, window: int, strides: int, pads: Pads) -> jax.Array:
    """The plain form, one `reduce_window`."""
    return nn.max_pool(x, (window, window), (strides, strides), pads)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool_on_cpu(x: jax.Array, window: int, strides: int, pads: Pads) -> jax.Array:
    """By windows; by slices where it is differentiated."""
    return max_pool_windows(x, window, strides, pads)


@max_pool_on_cpu.defjvp
def _by_slices(window: int, strides: int, pads: Pads, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(lambda x: max_pool_slices(x, window, strides, pads), primals, tangents)


def max_pool_slices(x: jax.Array, window: int, strides: int, pads: Pads) -> jax.Array:
    """The same as a running maximum over window * window strided slices."""
    if any(map(any, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((side - window) // strides * strides + 1 for side in x.shape[1:3])

    def piece(i: int, j: int) -> jax.Array:
        # lax.slice, since JAX's oldest supported release makes a gather of x[::2], whose gradient is a scatter.
        return lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + columns, x.shape[3]), (1, strides, strides, 1))

    pieces = [piece(i, j) for i in range(window) for j in range(window)]
    return functools.reduce(lambda best, piece: jnp.where(best >= piece, best, piece), pieces)
