"""AlexNet: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", as in torchvision.

The single-column form of Krizhevsky, Sutskever and Hinton 2012: five convolutions, three overlapping max-pools, three
dense layers, no local response normalisation.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Conv, DenseOverMap, adaptive_mean, check_images
from zoo.features import sow
from zoo.ops.pooling import max_pool
from zoo.registry import register

LAYERS = (  # index in torchvision's list, width, kernel size, strides, padding, whether a max-pool follows
    (0, 64, 11, 4, 2, True),
    (3, 192, 5, 1, 2, True),
    (6, 384, 3, 1, 1, False),
    (8, 256, 3, 1, 1, False),
    (10, 256, 3, 1, 1, True),
)


@register(
    "alexnet",
    family="cnn",
    input_shape=(224, 224, 3),
    paper="Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997",
)
class AlexNet(nn.Module):
    """Images [B, H, W, C], at least 63 x 63, to logits [B, num_classes].

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 16, 32), hidden1, hidden2, pooled (the
    same as hidden2). Training needs an rng `dropout`.
    """

    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    hidden_size: int = 4096
    dropout_rate: float = 0.5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    head = "classifier_6"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=63)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stage = 1
        for place, width, size, strides, pad, pools in LAYERS:
            padding = ((pad, pad), (pad, pad))
            conv = Conv(width, (size, size), strides, padding, **dtypes, name=f"features_{place}")
            x = nn.relu(conv(x))
            if pools:  # 55 -> 27 -> 13 -> 6
                x = sow(self, f"stage{stage}", x)
                x, stage = max_pool(x, 3, 2), stage + 1
        x = adaptive_mean(sow(self, "stage4", x), (6, 6))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = sow(self, "hidden1", nn.relu(DenseOverMap(self.hidden_size, **dtypes, name="classifier_1")(x)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = sow(self, "hidden2", nn.relu(nn.Dense(self.hidden_size, **dtypes, name="classifier_4")(x)))
        x = sow(self, "pooled", x)
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **dtypes, name="classifier_6")(x)
