"""VGG: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", table 1.

Columns A, B, D and E, with torchvision's names; the `_bn` variants, not in the paper, normalise after each convolution.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Conv, DenseOverMap, adaptive_mean, batch_norm, check_images, he_normal_fan_out
from zoo.features import sow
from zoo.ops.pooling import max_pool
from zoo.registry import register

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Images [B, H, W, C], at least 32 x 32, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), hidden1, hidden2, pooled (the
    same as hidden2). Training needs an rng `dropout`. `axis_name`: see `ResNet`.
    """

    stage_sizes: tuple[int, ...]  # convolutions before each max-pool
    batch_norm: bool = False
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    hidden_size: int = 4096
    dropout_rate: float = 0.5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier_6"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        place = 0  # in torchvision's list of layers
        for stage, (width, convs) in enumerate(zip(WIDTHS, self.stage_sizes, strict=True), start=-1):
            for _ in range(convs):
                name = f"features_{place}"
                x = Conv(width, (3, 3), padding=1, kernel_init=he_normal_fan_out, **dtypes, name=name)(x)
                if self.batch_norm:
                    x = batch_norm(train, self.axis_name, **dtypes, name=f"features_{place + 1}")(x)
                x = nn.relu(x)
                place += 3 if self.batch_norm else 2
            if stage > 0:
                x = sow(self, f"stage{stage}", x)
            x, place = max_pool(x, 2, 2), place + 1
        x = adaptive_mean(sow(self, "stage4", x), (7, 7))
        x = sow(self, "hidden1", nn.relu(DenseOverMap(self.hidden_size, **dtypes, name="classifier_0")(x)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = sow(self, "hidden2", nn.relu(nn.Dense(self.hidden_size, **dtypes, name="classifier_3")(x)))
        x = sow(self, "pooled", x)
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="classifier_6")(x)


COLUMNS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
PAPER = "Simonyan and Zisserman 2015, Very deep convolutional networks, arXiv:1409.1556"

for _name, _sizes in COLUMNS.items():
    for _suffix, _norm in (("", False), ("_bn", True)):
        register(_name + _suffix, family="cnn", input_shape=(224, 224, 3), paper=PAPER)(
            partial(VGG, stage_sizes=_sizes, batch_norm=_norm)
        )
