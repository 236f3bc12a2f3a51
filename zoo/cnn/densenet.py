"""DenseNet-BC: Huang, Liu, van der Maaten and Weinberger 2017, "Densely connected convolutional networks", section 3.

Each layer sees the maps of all layers before it in its block, through a 1x1 bottleneck of 4 k channels; transitions
halve channels and size.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean
from zoo.features import sow
from zoo.ops.pooling import avg_pool, max_pool
from zoo.registry import register


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution; its maps are appended to its input."""

    growth_width: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(4 * self.growth_width, 1, 1, name="conv1")(nn.relu(self.norm(name="norm1")(x)))
        y = self.conv(self.growth_width, 3, 1, name="conv2")(nn.relu(self.norm(name="norm2")(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseBlock(nn.Module):
    layers: int
    growth_width: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = DenseLayer(self.growth_width, self.conv, self.norm, name=f"denselayer{i + 1}")(x)
        return x


class Transition(nn.Module):
    """Half the channels, half the size."""

    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x.shape[-1] // 2, 1, 1, name="conv")(nn.relu(self.norm(name="norm")(x)))
        return avg_pool(x, 2, 2)


class DenseFeatures(nn.Module):
    """Everything but the classifier; returns the outputs of the stages, the last one normalised."""

    stage_sizes: tuple[int, ...]
    growth_width: int
    width: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        x = nn.relu(self.norm(name="norm0")(self.conv(self.width, 7, 2, name="conv0")(x)))
        x, stages = max_pool(x, 3, 2, padding=1), []
        for i, layers in enumerate(self.stage_sizes, start=1):
            x = DenseBlock(layers, self.growth_width, self.conv, self.norm, name=f"denseblock{i}")(x)
            stages.append(x)
            if i < len(self.stage_sizes):
                x = Transition(self.conv, self.norm, name=f"transition{i}")(x)
        return [*stages[:-1], nn.relu(self.norm(name="norm5")(x))]


class DenseNet(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), pooled. `axis_name`: see `ResNet`.
    """

    stage_sizes: tuple[int, ...]
    growth_width: int = 32
    width: int = 64
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm: Layer = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)
        stages = DenseFeatures(self.stage_sizes, self.growth_width, self.width, new_conv, norm, name="features")(x)
        for i, x in enumerate(stages, start=1):
            x = sow(self, f"stage{i}", x)
        x = sow(self, "pooled", global_mean(x))
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **dtypes, name="classifier")(x)


register(
    "densenet121",
    family="cnn",
    input_shape=(224, 224, 3),
    paper="Huang et al. 2017, Densely connected convolutional networks, arXiv:1608.06993",
)(partial(DenseNet, stage_sizes=(6, 12, 24, 16)))
