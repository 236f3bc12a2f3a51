"""Convolution whose gradient by the kernel is fast on a CPU.

XLA computes that gradient there as a convolution with a window as large as the map, at a quarter of the speed of the
forward one. As patches times gradients, a group of images at a time so that the patches stay in the cache, it is one
and a half to three times as fast (3x3 kernels, maps of 15 to 31 a side). The first convolution of a network, of very
few channels, is patches times kernel forward too. Other platforms keep XLA's.

A rule of its own for reverse mode costs forward mode (`jax.jvp`), so it holds only where asked for: a function that is
traced inside `fast_kernel_gradients()`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PATCH_BYTES = 4 << 20  # of the patches that are held at a time
FEW_CHANNELS = 4  # with no more, the forward product is made of patches too

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_fast = contextvars.ContextVar("fast_kernel_gradients", default=False)

Pads = tuple[tuple[int, int], tuple[int, int]]


@contextlib.contextmanager
def fast_kernel_gradients() -> Iterator[None]:
    """What is traced inside has the fast gradient, in reverse mode only."""
    token = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(token)


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **settings: Any
) -> jax.Array:
    """`lax.conv_general_dilated` of x [B, H, W, C] and kernel [h, w, C, out], for `nn.Conv(conv_general_dilated=...)`.

    Grouped and dilated convolutions, and all outside `fast_kernel_gradients()`, are XLA's.
    """
    plain = all(
        value is None or value == 1 or (isinstance(value, Sequence) and all(v == 1 for v in value))
        for key, value in settings.items()
        if key in ("lhs_dilation", "rhs_dilation", "feature_group_count", "precision")
    )
    if not (_fast.get() and plain and x.ndim == 4):
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return conv(x, kernel, (strides[0], strides[1]), ((top, bottom), (left, right)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [h, w, C, out]; its gradient by the kernel is `kernel_gradient`."""
    if x.shape[-1] > FEW_CHANNELS:
        return _native(strides, pads, x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=partial(_patches_times, strides, pads), default=partial(_native, strides, pads)
    )


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> Any:
    return conv(x, kernel, strides, pads), (x, kernel)


def _backward(strides: tuple[int, int], pads: Pads, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (by_x,) = jax.linear_transpose(lambda x: _native(strides, pads, x, kernel), x)(gradient)
    by_kernel = lax.platform_dependent(
        x,
        kernel,
        gradient,
        cpu=partial(kernel_gradient, strides, pads),
        default=partial(kernel_gradient_native, strides, pads),
    )
    return by_x, by_kernel


conv.defvjp(_forward, _backward)


def _native(strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMENSIONS)


def _patches(strides: tuple[int, int], pads: Pads, size: tuple[int, ...], x: jax.Array) -> jax.Array:
    """[B, H, W, C] to the windows that a kernel of `size` sees, [B, H', W', h w C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((x.shape[i + 1] - size[i]) // strides[i] * strides[i] + 1 for i in (0, 1))
    limits = (len(x), rows, columns, x.shape[3])

    def piece(i: int, j: int) -> jax.Array:
        return lax.slice(x, (0, i, j, 0), (limits[0], i + rows, j + columns, limits[3]), (1, *strides, 1))

    return jnp.concatenate([piece(i, j) for i in range(size[0]) for j in range(size[1])], axis=-1)


def _patches_times(strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = _patches(strides, pads, kernel.shape[:2], x)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def kernel_gradient(
    strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient by the kernel, of the output's `gradient` [B, H', W', out]: patches transposed times gradients."""
    size, out = kernel.shape[:2], kernel.shape[-1]
    patch_bytes = 4 * gradient[0, ..., 0].size * kernel[..., 0].size
    group = next(n for n in range(min(len(x), max(1, PATCH_BYTES // patch_bytes)), 0, -1) if len(x) % n == 0)

    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        patches = _patches(strides, pads, size, group[0])
        patches, rows = patches.reshape(-1, patches.shape[-1]), group[1].reshape(-1, out)
        contract = (((0,), (0,)), ((), ()))
        return total + lax.dot_general(patches, rows, contract, preferred_element_type=jnp.float32), None

    zero = jnp.zeros((kernel[..., 0].size, out), jnp.float32)
    groups = (x.reshape(-1, group, *x.shape[1:]), gradient.reshape(-1, group, *gradient.shape[1:]))
    total, _ = lax.scan(add, zero, groups)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient_native(
    strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The same as XLA has it."""
    return jax.linear_transpose(lambda kernel: _native(strides, pads, x, kernel), kernel)(gradient)[0]
