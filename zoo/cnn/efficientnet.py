"""EfficientNet-B0 (Tan and Le 2019, table 1), as in torchvision, and its Lite form.

Lite0 is Google's form for mobile devices (2020): no squeeze-and-excitation, ReLU6 instead of SiLU; here with
torchvision's symmetric padding, where TensorFlow pads the end.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.inverted_residual import InvertedResidual, sow_stages
from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean
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

    squeeze: bool = True
    activation: Literal["silu", "relu6"] = "silu"
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
        new_conv: Layer = partial(conv, **dtypes)
        norm: Layer = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)
        activation = ACTIVATIONS[self.activation]
        x = activation(norm(name="features_0_1")(new_conv(32, 3, 2, name="features_0_0")(x)))
        done, total, stride, stages = 0, sum(row[-1] for row in STAGES), 2, {}
        for place, (expansion, size, strides, width, blocks) in enumerate(STAGES, start=1):
            for i in range(blocks):
                before, step = x.shape[-1], strides if i == 0 else 1
                x = InvertedResidual(
                    expansion * before,
                    width,
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
        x = activation(norm(name="features_8_1")(new_conv(1280, 1, 1, name="features_8_0")(x)))
        x = sow(self, "pooled", global_mean(x))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="classifier_1")(x)


VARIANTS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {},
    "efficientnet_lite0": {"squeeze": False, "activation": "relu6"},
}
for _name, _row in VARIANTS.items():
    register(
        _name,
        family="cnn",
        input_shape=(224, 224, 3),
        paper="Tan and Le 2019, EfficientNet: rethinking model scaling, arXiv:1905.11946",
    )(partial(EfficientNet, **_row))
