"""The inverted residual block of MobileNet and EfficientNet (Sandler et al. 2018, section 3.3).

A 1x1 convolution to more channels, a depthwise convolution, optional squeeze-and-excitation (Hu et al. 2018), and a
linear 1x1 convolution back; a shortcut where size and width do not change.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Layer, drop_path
from zoo.features import sow
from zoo.ops.precision import at_least_float32

Activation = Callable[[jax.Array], jax.Array]


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels' means."""

    width: int
    activation: Activation
    gate: Activation
    conv: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=at_least_float32(x)).astype(x.dtype)  # [B, 1, 1, C]
        y = self.activation(self.conv(self.width, 1, 1, name="fc1", use_bias=True)(y))
        return x * self.gate(self.conv(x.shape[-1], 1, 1, name="fc2", use_bias=True)(y))


def sow_stages(module: nn.Module, maps: dict[int, jax.Array]) -> jax.Array:
    """Sows a network's last maps at strides 4, 8, 16 and 32 as stage1 to stage4; returns the last."""
    return [sow(module, f"stage{i}", maps[stride]) for i, stride in enumerate((4, 8, 16, 32), start=1)][-1]


class InvertedResidual(nn.Module):
    """Layers are named `{prefix}_{place}`, as in torchvision: `_0` the convolution, `_1` its norm.

    With `flat_projection` (MobileNetV2) the last convolution and its norm are places of their own.
    """

    expanded_width: int
    width: int
    kernel_size: int
    strides: int
    squeeze_width: int  # 0: no squeeze-and-excitation
    activation: Activation
    conv: Layer
    norm: Layer
    train: bool
    squeeze_activation: Activation = nn.relu
    gate: Activation = nn.sigmoid
    drop_rate: float = 0.0
    prefix: str = "block"
    flat_projection: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, inner, place = x, self.expanded_width, 0
        if inner != x.shape[-1]:
            y = self.conv(inner, 1, 1, name=f"{self.prefix}_0_0")(y)
            y, place = self.activation(self.norm(name=f"{self.prefix}_0_1")(y)), 1
        y = self.conv(inner, self.kernel_size, self.strides, groups=inner, name=f"{self.prefix}_{place}_0")(y)
        y, place = self.activation(self.norm(name=f"{self.prefix}_{place}_1")(y)), place + 1
        if self.squeeze_width:
            squeeze = SqueezeExcite(
                self.squeeze_width, self.squeeze_activation, self.gate, self.conv, name=f"{self.prefix}_{place}"
            )
            y, place = squeeze(y), place + 1
        names = (place, place + 1) if self.flat_projection else (f"{place}_0", f"{place}_1")
        y = self.conv(self.width, 1, 1, name=f"{self.prefix}_{names[0]}")(y)
        y = self.norm(name=f"{self.prefix}_{names[1]}")(y)
        if self.strides != 1 or x.shape[-1] != self.width:
            return y
        return x + drop_path(y, self.drop_rate, self.train)
