"""Convolution whose gradient by the kernel is fast on a CPU.

XLA computes that gradient there as a convolution with a window as large as the map. As one matrix product, of what each
column of the kernel sees times the gradients that each of its rows brings, a group of images at a time so that both
stay in the cache, it takes 0.55 to 0.9 of the time (3x3 kernels, 16 to 512 channels, maps of 32 down to 4 a side) and
copies two thirds of what patches of whole windows do. Strided kernels, and few channels to many, are left to patches.
The first convolution of a network, of very few channels, is patches times kernel forward too. Other platforms keep
XLA's.

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
from jax.sharding import PartitionSpec

from zoo import split

GROUP_BYTES = 4 << 20  # of what one product multiplies, so that it stays in the cache
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
        cpu=partial(_summed_over_rows, partial(kernel_gradient, strides, pads)),
        default=partial(kernel_gradient_native, strides, pads),
    )
    return by_x, by_kernel


conv.defvjp(_forward, _backward)


def _native(strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMENSIONS)


def _patches(strides: tuple[int, int], pads: Pads, size: tuple[int, ...], x: jax.Array) -> jax.Array:
    """[B, H, W, C] to the windows that a kernel of `size` sees, [B, H', W', h w C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    for axis in (2, 1):  # columns first, then rows of them: fewer and longer pieces than one for each place
        side, stride = size[axis - 1], strides[axis - 1]
        span = (x.shape[axis] - side) // stride * stride + 1
        x = jnp.concatenate([lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(side)], axis=-1)
    return x


def _patches_times(strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = _patches(strides, pads, kernel.shape[:2], x)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def kernel_gradient(
    strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient by the kernel, of the output's `gradient` [B, H', W', out]: one product, transposed times plain.

    Of patches times gradients; or of the columns that each column of the kernel sees, [B, H, W', w C], times the
    gradients that each of its rows reaches, [B, H, W', h out]: whichever copies less.
    """
    height, width, channels, out = kernel.shape
    by_rows = strides == (1, 1) and width * channels + height * out < height * width * channels + out

    def product(x: jax.Array, gradient: jax.Array) -> jax.Array:
        if by_rows:
            x, gradient = _columns(pads, width, x, gradient.shape[2]), _rows(pads, height, gradient, x.shape[1])
        else:
            x = _patches(strides, pads, (height, width), x)
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + product(*group), None

    one = jax.eval_shape(product, x[:1], gradient[:1])
    rows = x[0, ..., 0].size if by_rows else gradient[0, ..., 0].size
    most = (GROUP_BYTES + 2 * 4 * one.size) // (4 * rows * sum(one.shape))  # adding up costs as well
    group = next(n for n in range(min(len(x), max(1, most)), 0, -1) if len(x) % n == 0)
    groups = (x.reshape(-1, group, *x.shape[1:]), gradient.reshape(-1, group, *gradient.shape[1:]))
    total, _ = lax.scan(add, jnp.zeros(one.shape, one.dtype), groups)
    if by_rows:
        total = total.reshape(width, channels, height, out).transpose(2, 0, 1, 3)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _columns(pads: Pads, width: int, x: jax.Array, out_width: int) -> jax.Array:
    """[B, H, W, C] to what each column of a kernel sees from each of `out_width` places, [B, H, W', w C]."""
    left = pads[1][0]

    def seen(j: int) -> jax.Array:
        return _shifted(x, 2, left - j, out_width)

    return jnp.concatenate([seen(j) for j in range(width)], axis=-1)


def _rows(pads: Pads, height: int, gradient: jax.Array, in_height: int) -> jax.Array:
    """[B, H', W', out] to what each row of a kernel brings to each of `in_height` rows, [B, H, W', h out]."""
    top = pads[0][0]
    return jnp.concatenate([_shifted(gradient, 1, i - top, in_height) for i in range(height)], axis=-1)


def _shifted(x: jax.Array, axis: int, by: int, size: int) -> jax.Array:
    """`x` moved by `by` places along an axis that is then of `size`, zeros where nothing came."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (by, size - x.shape[axis] - by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _summed_over_rows(run: Any, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """`kernel_gradient`; on a mesh (`zoo.split`) that of each device's images, which groups would mix, summed."""
    rows = split.axes_of("rows", len(x))
    if rows is None:
        return run(x, kernel, gradient)
    own, whole = PartitionSpec(rows), PartitionSpec()
    return split.by_device(lambda *arrays: lax.psum(run(*arrays), rows), (own, whole, own), whole)(x, kernel, gradient)


def kernel_gradient_native(
    strides: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The same as XLA has it."""
    return jax.linear_transpose(lambda kernel: _native(strides, pads, x, kernel), kernel)(gradient)[0]
