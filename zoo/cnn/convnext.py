"""ConvNeXt: Liu et al. 2022, "A ConvNet for the 2020s", section 2, as in torchvision.

Stages of blocks: depthwise 7x7 convolution, layer norm, a dense layer to four times the width, GELU, a dense layer
back, a scale per channel that starts at 1e-6. Stochastic depth grows linearly with depth. V2 (Woo et al. 2023, section
3.2) has global response normalisation after the GELU, and no scale.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import check_images, drop_path, global_mean
from zoo.features import sow
from zoo.ops.gelu import gelu
from zoo.ops.precision import at_least_float32
from zoo.registry import register

truncated_normal = nn.initializers.truncated_normal(0.02)


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, algorithm 1) of x [B, H, W, C]: each channel times its norm over
    the map, by the mean norm of all channels; added to x."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (
            self.param(name, nn.initializers.zeros, (x.shape[-1],), self.param_dtype) for name in ("scale", "bias")
        )
        wide = x.astype(at_least_float32(x))
        norms = jnp.sqrt(jnp.maximum(jnp.sum(wide * wide, axis=(1, 2), keepdims=True), 1e-24))  # the gradient at 0 is 0
        share = norms / (jnp.mean(norms, axis=-1, keepdims=True) + 1e-6)
        return (wide + scale.astype(wide.dtype) * wide * share + bias.astype(wide.dtype)).astype(x.dtype)


class ConvNeXtBlock(nn.Module):
    response_norm: bool
    drop_rate: float
    train: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, dtypes = x.shape[-1], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = {"kernel_init": truncated_normal, **dtypes}
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width, **init, name="block_0")(x)
        y = nn.LayerNorm(epsilon=1e-6, **dtypes, name="block_2")(y)
        y = gelu(nn.Dense(4 * width, **init, name="block_3")(y))
        if self.response_norm:
            y = ResponseNorm(**dtypes, name="grn")(y)
        y = nn.Dense(width, **init, name="block_5")(y)
        if self.response_norm:
            return x + drop_path(y, self.drop_rate, self.train).astype(x.dtype)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (1, 1, width), self.param_dtype)
        return x + drop_path(y * scale.astype(y.dtype), self.drop_rate, self.train).astype(x.dtype)


class ConvNeXt(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), pooled. Block i of n is dropped with
    i / (n - 1) of `drop_path_rate`; above 0 it needs an rng `dropout` to train.
    """

    stage_sizes: tuple[int, ...]
    width: int = 96
    response_norm: bool = False  # of V2, which has no scale per channel
    drop_path_rate: float = 0.1
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    head = "classifier_2"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = {"kernel_init": truncated_normal, **dtypes}
        norm = partial(nn.LayerNorm, epsilon=1e-6, **dtypes)
        x = nn.Conv(self.width, (4, 4), strides=4, padding="VALID", **init, name="features_0_0")(x)
        x, done, last = norm(name="features_0_1")(x), 0, max(sum(self.stage_sizes) - 1, 1)
        for stage, blocks in enumerate(self.stage_sizes):
            if stage:
                x = norm(name=f"features_{2 * stage}_0")(x)
                conv = nn.Conv(
                    self.width * 2**stage, (2, 2), strides=2, padding="VALID", **init, name=f"features_{2 * stage}_1"
                )
                x = conv(x)
            for i in range(blocks):
                rate, name = self.drop_path_rate * done / last, f"features_{2 * stage + 1}_{i}"
                x, done = ConvNeXtBlock(self.response_norm, rate, train, **dtypes, name=name)(x), done + 1
            x = sow(self, f"stage{stage + 1}", x)
        x = sow(self, "pooled", norm(name="classifier_0")(global_mean(x)))
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **init, name="classifier_2")(x)


VARIANTS: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"stage_sizes": (3, 3, 9, 3)},
    "convnext_small": {"stage_sizes": (3, 3, 27, 3), "drop_path_rate": 0.4},
    "convnext_base": {"stage_sizes": (3, 3, 27, 3), "width": 128, "drop_path_rate": 0.5},
    "convnext_large": {"stage_sizes": (3, 3, 27, 3), "width": 192, "drop_path_rate": 0.5},
}
V2: dict[str, dict[str, Any]] = {
    "convnextv2_atto": {"stage_sizes": (2, 2, 6, 2), "width": 40},
    "convnextv2_femto": {"stage_sizes": (2, 2, 6, 2), "width": 48},
    "convnextv2_pico": {"stage_sizes": (2, 2, 6, 2), "width": 64},
    "convnextv2_nano": {"stage_sizes": (2, 2, 8, 2), "width": 80},
    "convnextv2_tiny": {"stage_sizes": (3, 3, 9, 3)},
    "convnextv2_base": {"stage_sizes": (3, 3, 27, 3), "width": 128},
}
for _name, _row in (VARIANTS | V2).items():
    register(
        _name,
        family="cnn",
        input_shape=(224, 224, 3),
        paper="Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808"
        if _name in V2
        else "Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545",
    )(partial(ConvNeXt, **_row, response_norm=_name in V2))
