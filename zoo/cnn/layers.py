"""Layers that the convolutional models share."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError
from zoo.ops.convolution import conv_general_dilated
from zoo.ops.precision import at_least_float32

Layer = Callable[..., Any]
Padding = Literal["both", "end"]
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)  # faster to train on CPU

# Kaiming normal over the fan out: the variance of the gradient, not of the activation, stays constant.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def check_images(model: nn.Module, x: jax.Array, least: int = 1) -> None:
    """ZooError unless `x` is a batch of images [B, H, W, C] of at least `least` pixels a side."""
    if np.ndim(x) != 4 or not hasattr(x, "dtype") or any(side < least for side in x.shape[1:3]):
        name, given = type(model).__name__, x.shape if hasattr(x, "dtype") else f"a {type(x).__name__}"
        raise ZooError(f"{name} takes images [batch, height, width, channels] of {least} pixels or more, not {given}")


def conv(
    width: int,
    kernel_size: int,
    strides: int,
    dtype: Any,
    param_dtype: Any,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
    padding: Padding = "both",
    dilation: int = 1,
) -> nn.Conv:
    """A square convolution, padded by (k - 1) / 2 on `both` sides as in torch, or as TensorFlow's "SAME", which differs
    where it strides: more at the `end`."""
    pad = dilation * (kernel_size - 1) // 2
    return Conv(
        width,
        (kernel_size, kernel_size),
        strides=strides,
        padding=((pad, pad), (pad, pad)) if padding == "both" else "SAME",
        feature_group_count=groups,
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class BatchNorm(nn.BatchNorm):
    """flax's, but running statistics of float64 parameters are float64, and a computation in float64 does not change
    their dtype."""

    def __post_init__(self) -> None:
        if jnp.dtype(self.param_dtype) == jnp.float64:
            self.force_float32_reductions = False
        super().__post_init__()

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        y = super().__call__(x, *args, **kwargs)
        if self.is_mutable_collection("batch_stats"):
            for name in ("mean", "var"):
                value: Any = self.get_variable("batch_stats", name)
                self.put_variable("batch_stats", name, value.astype(at_least_float32(self.param_dtype)))
        return y


def batch_norm(
    train: bool,
    axis_name: str | None,
    dtype: Any,
    param_dtype: Any,
    name: str,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> nn.BatchNorm:
    """Batch normalisation, by default with torch's epsilon and momentum; statistics in float32 or
    more.

    `momentum` is the weight of the old running average. The running variance is the biased one; torch stores n / (n -
    1) times it.
    """
    return BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        axis_name=axis_name if train else None,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def drop_path(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): in training drops a branch's output for whole examples, with probability
    `rate`.

    The rest is divided by 1 - rate. Needs an rng `dropout` if it drops.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(x)


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, C], summed in float32 or more."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x)).astype(x.dtype)


def adaptive_mean(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, H, W, C] to [B, *size, C]; cell i of n is the mean over rows floor(i H / n) to ceil((i + 1) H / n)."""
    for axis, cells in enumerate(size, start=1):
        side = x.shape[axis]
        if side != cells:
            spans = [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
            means = [jnp.mean(jax.lax.slice_in_dim(x, *span, axis=axis), axis=axis) for span in spans]
            x = jnp.stack(means, axis=axis)
    return x


class DenseOverMap(nn.Module):
    """A dense layer over a whole feature map, [B, H, W, C] to [B, features], whose kernel is [H, W, C, features].

    It keeps the map's geometry in the kernel, and multiplies flat: the gradient of the same product as a contraction
    over three axes takes three times as long on a CPU.
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, (*x.shape[1:], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        size = math.prod(x.shape[1:])
        return x.reshape(x.shape[0], size) @ kernel.reshape(size, self.features) + bias


def round_width(width: float) -> int:
    """The multiple of 8 nearest to `width`, at least 8 and not below 90 % of it (Sandler et al. 2018, their code)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
