"""MobileNetV2 (Sandler et al. 2018, table 2) and MobileNetV3 (Howard et al. 2019, tables 1 and 2).

Both as in torchvision, including the rounding of widths.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.inverted_residual import InvertedResidual, sow_stages
from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean, round_width
from zoo.features import sow
from zoo.registry import register

V2 = (  # expansion, width, blocks, strides of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
V3 = {  # kernel size, expanded width, width, squeeze-and-excitation, activation, strides
    "small": (
        (3, 16, 16, True, "relu", 2),
        (3, 72, 24, False, "relu", 2),
        (3, 88, 24, False, "relu", 1),
        (5, 96, 40, True, "hswish", 2),
        (5, 240, 40, True, "hswish", 1),
        (5, 240, 40, True, "hswish", 1),
        (5, 120, 48, True, "hswish", 1),
        (5, 144, 48, True, "hswish", 1),
        (5, 288, 96, True, "hswish", 2),
        (5, 576, 96, True, "hswish", 1),
        (5, 576, 96, True, "hswish", 1),
    ),
    "large": (
        (3, 16, 16, False, "relu", 1),
        (3, 64, 24, False, "relu", 2),
        (3, 72, 24, False, "relu", 1),
        (5, 72, 40, True, "relu", 2),
        (5, 120, 40, True, "relu", 1),
        (5, 120, 40, True, "relu", 1),
        (3, 240, 80, False, "hswish", 2),
        (3, 200, 80, False, "hswish", 1),
        (3, 184, 80, False, "hswish", 1),
        (3, 184, 80, False, "hswish", 1),
        (3, 480, 112, True, "hswish", 1),
        (3, 672, 112, True, "hswish", 1),
        (5, 672, 160, True, "hswish", 2),
        (5, 960, 160, True, "hswish", 1),
        (5, 960, 160, True, "hswish", 1),
    ),
}
ACTIVATIONS = {"relu": nn.relu, "hswish": nn.hard_swish}


class MobileNetV2(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), pooled. `axis_name`: see `ResNet`. Widths are
    multiplied by `multiplier`, in steps of 8 channels. Needs an rng `dropout` to train.
    """

    multiplier: float = 1.0
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dropout_rate: float = 0.2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier_1"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm: Layer = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)
        block = partial(
            InvertedResidual,
            kernel_size=3,
            squeeze_width=0,
            activation=nn.relu6,
            conv=new_conv,
            norm=norm,
            train=train,
            prefix="conv",
            flat_projection=True,
        )
        x = new_conv(round_width(32 * self.multiplier), 3, 2, name="features_0_0")(x)
        x = nn.relu6(norm(name="features_0_1")(x))
        place, stride, stages = 1, 2, {}
        for expansion, width, blocks, strides in V2:
            for i in range(blocks):
                step, expanded = strides if i == 0 else 1, expansion * x.shape[-1]
                width_here = round_width(width * self.multiplier)
                x = block(expanded, width_here, strides=step, name=f"features_{place}")(x)
                place, stride = place + 1, stride * step
            stages[stride] = x
        x = sow_stages(self, stages)
        last = round_width(1280 * max(1.0, self.multiplier))
        x = nn.relu6(norm(name=f"features_{place}_1")(new_conv(last, 1, 1, name=f"features_{place}_0")(x)))
        x = sow(self, "pooled", global_mean(x))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="classifier_1")(x)


class MobileNetV3(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), stage4_first (of the first block at stride 32),
    last (of the last convolution), hidden, pooled (the same). `axis_name`: see `ResNet`. Needs an rng `dropout` to
    train.
    """

    variant: Literal["small", "large"]
    hidden_size: int
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dropout_rate: float = 0.2
    norm_epsilon: float = 1e-3
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier_3"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm: Layer = partial(
            batch_norm, train=train, axis_name=self.axis_name, epsilon=self.norm_epsilon, momentum=0.99, **dtypes
        )
        x = nn.hard_swish(norm(name="features_0_1")(new_conv(16, 3, 2, name="features_0_0")(x)))
        stride, stages = 2, {}
        for place, (size, expanded, width, squeezes, activation, strides) in enumerate(V3[self.variant], start=1):
            x = InvertedResidual(
                expanded,
                width,
                size,
                strides,
                round_width(expanded / 4) if squeezes else 0,
                ACTIVATIONS[activation],
                new_conv,
                norm,
                train,
                gate=nn.hard_sigmoid,
                name=f"features_{place}",
            )(x)
            stride *= strides
            stages[stride] = sow(self, "stage4_first", x) if (stride, strides) == (32, 2) else x
        x = sow_stages(self, stages)
        place, last = len(V3[self.variant]) + 1, 6 * x.shape[-1]
        x = nn.hard_swish(norm(name=f"features_{place}_1")(new_conv(last, 1, 1, name=f"features_{place}_0")(x)))
        x = sow(self, "last", x)
        hidden = nn.Dense(self.hidden_size, **dtypes, name="classifier_0")(global_mean(x))
        x = sow(self, "pooled", sow(self, "hidden", nn.hard_swish(hidden)))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="classifier_3")(x)


register(
    "mobilenet_v2",
    family="cnn",
    input_shape=(224, 224, 3),
    paper="Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381",
)(MobileNetV2)
VARIANTS: dict[str, dict[str, Any]] = {
    "mobilenet_v3_small": {"variant": "small", "hidden_size": 1024},
    "mobilenet_v3_large": {"variant": "large", "hidden_size": 1280},
}
for _name, _row in VARIANTS.items():
    register(
        _name,
        family="cnn",
        input_shape=(224, 224, 3),
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
    )(partial(MobileNetV3, **_row))
