"""EfficientNet (Tan and Le 2019, table 1 and section 5.2), B0 as in torchvision, and its Lite form.

Larger ones have wider and deeper stages. Lite is Google's form for mobile devices (2020): no squeeze-and-excitation,
ReLU6 instead of SiLU, and the same first and last layers and stages for every size. By default padding is torch's, on
both sides; weights from TensorFlow need `padding="end"` and a `norm_epsilon` of 1e-3.
"""

import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.inverted_residual import InvertedResidual, sow_stages
from zoo.cnn.layers import Layer, Padding, batch_norm, check_images, conv, global_mean, round_width
from zoo.features import sow
from zoo.registry import register

STAGES = (  # expansion, kernel size, strides of the first, width, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6}


class EfficientNet(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), pooled. `axis_name`: see `ResNet`. Block i of n
    is dropped with i / n of `drop_path_rate`. Needs an rng `dropout` to train.
    """

    width_factor: float = 1.0  # of B0's widths, in steps of 8 channels
    depth_factor: float = 1.0  # of B0's numbers of blocks, rounded up
    fixed_ends: bool = False  # the first and last layers and stages are B0's
    squeeze: bool = True
    activation: Literal["silu", "relu6"] = "silu"
    padding: Padding = "both"
    norm_epsilon: float = 1e-5
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier_1"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, padding=self.padding, **dtypes)
        norm: Layer = partial(batch_norm, train=train, axis_name=self.axis_name, epsilon=self.norm_epsilon, **dtypes)
        activation = ACTIVATIONS[self.activation]
        x = activation(norm(name="features_0_1")(new_conv(self.end_width(32), 3, 2, name="features_0_0")(x)))
        depths = self.depths()
        done, total, stride, stages = 0, sum(depths), 2, {}
        for place, ((expansion, size, strides, width, _), blocks) in enumerate(
            zip(STAGES, depths, strict=True), start=1
        ):
            for i in range(blocks):
                before, step = x.shape[-1], strides if i == 0 else 1
                x = InvertedResidual(
                    expansion * before,
                    round_width(width * self.width_factor),
                    size,
                    step,
                    before // 4 if self.squeeze else 0,
                    activation,
                    new_conv,
                    norm,
                    train,
                    squeeze_activation=activation,
                    drop_rate=self.drop_path_rate * done / total,
                    name=f"features_{place}_{i}",
                )(x)
                done, stride = done + 1, stride * step
            stages[stride] = x
        x = sow_stages(self, stages)
        x = activation(norm(name="features_8_1")(new_conv(self.end_width(1280), 1, 1, name="features_8_0")(x)))
        x = sow(self, "pooled", global_mean(x))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="classifier_1")(x)

    def end_width(self, width: int) -> int:
        """The width of the first or last convolution."""
        return width if self.fixed_ends else round_width(width * self.width_factor)

    def depths(self) -> list[int]:
        """The number of blocks of each stage."""
        depths = [math.ceil(row[-1] * self.depth_factor) for row in STAGES]
        return [STAGES[0][-1], *depths[1:-1], STAGES[-1][-1]] if self.fixed_ends else depths


SCALES = ((1.0, 1.0, 0.2), (1.0, 1.1, 0.2), (1.1, 1.2, 0.3), (1.2, 1.4, 0.3), (1.4, 1.8, 0.4))  # width, depth, dropout
SIDES = {"b": (224, 240, 260, 300, 380), "lite": (224, 240, 260, 280, 300)}  # pixels
LITE: dict[str, Any] = {"squeeze": False, "activation": "relu6", "fixed_ends": True}
for _kind, _sides in SIDES.items():
    for _number, (_side, (_width, _depth, _dropout)) in enumerate(zip(_sides, SCALES, strict=True)):
        _row: dict[str, Any] = {"width_factor": _width, "depth_factor": _depth, "dropout_rate": _dropout}
        register(
            f"efficientnet_{_kind}{_number}",
            family="cnn",
            input_shape=(_side, _side, 3),
            paper="Tan and Le 2019, EfficientNet: rethinking model scaling, arXiv:1905.11946",
        )(partial(EfficientNet, **(_row | LITE | {"dropout_rate": min(_dropout, 0.3)} if _kind == "lite" else _row)))
