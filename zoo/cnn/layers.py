"""What the convolutional models share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError

# Kaiming normal over the fan out: the variance of the gradient, not of the activation, stays constant.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def check_images(model: nn.Module, x: jax.Array, least: int = 1) -> None:
    """ZooError unless `x` is a batch of images [B, H, W, C] of at least `least` pixels a side."""
    if x.ndim != 4 or min(x.shape[1:3]) < least:
        name = type(model).__name__
        raise ZooError(f"{name} takes images [batch, height, width, channels] of {least} pixels or more, not {x.shape}")


def conv(width: int, kernel_size: int, strides: int, dtype: Any, param_dtype: Any, name: str) -> nn.Conv:
    """A square convolution without bias, padded by (k - 1) / 2 on both sides as in torch (striding, `SAME` differs)."""
    pad = (kernel_size - 1) // 2
    return nn.Conv(
        width,
        (kernel_size, kernel_size),
        strides=strides,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def batch_norm(train: bool, axis_name: str | None, dtype: Any, param_dtype: Any, name: str) -> nn.BatchNorm:
    """Batch normalisation with torch's epsilon and momentum; statistics in float32.

    The running variance is the biased one; torch keeps n / (n - 1) times that.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name if train else None,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def global_mean(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, C], summed in float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


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
        return x.reshape(len(x), -1) @ kernel.reshape(-1, self.features) + bias
