"""Wide residual networks: Zagoruyko and Komodakis 2016, "Wide residual networks", for small images.

Pre-activation blocks of two 3x3 convolutions (He et al. 2016, "Identity mappings in deep residual networks"), 16, 32,
64 channels times a widening factor. Where width or stride changes, the shortcut is a 1x1 convolution of the activated
input.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean
from zoo.features import sow
from zoo.registry import register


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, norm, ReLU, dropout, 3x3 convolution, and the shortcut."""

    width: int
    strides: int
    dropout_rate: float
    train: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(x))
        if x.shape[-1] != self.width or self.strides != 1:
            x = self.conv(self.width, 1, self.strides, name="downsample")(y)
        y = self.conv(self.width, 3, self.strides, name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = nn.Dropout(self.dropout_rate, deterministic=not self.train)(y)
        return x + self.conv(self.width, 3, 1, name="conv2")(y)


class WideResNet(nn.Module):
    """Images [B, H, W, C] to logits [B, num_classes]; (depth - 4) / 6 blocks a stage.

    Features: stem, stage1, stage2, stage3 (at strides 1, 2, 4), pooled. `axis_name`: see `ResNet`. An rng `dropout` is
    needed to train with a dropout rate above 0.
    """

    stage_sizes: tuple[int, ...] = (4, 4, 4)
    width: int = 160
    num_classes: int | None = 10  # None: no head, the result is `pooled`
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "fc"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm: Layer = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)
        x = sow(self, "stem", new_conv(16, 3, 1, name="conv1")(x))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                width, name = self.width * 2**stage, f"layer{stage + 1}_{i}"
                x = PreActivationBlock(width, strides, self.dropout_rate, train, new_conv, norm, name=name)(x)
            x = sow(self, f"stage{stage + 1}", x)
        x = sow(self, "pooled", global_mean(nn.relu(norm(name="bn1")(x))))  # [B, C]
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **dtypes, name="fc")(x)


register(
    "wide_resnet28_10",
    family="cnn",
    input_shape=(32, 32, 3),
    paper="Zagoruyko and Komodakis 2016, Wide residual networks, arXiv:1605.07146",
)(WideResNet)
