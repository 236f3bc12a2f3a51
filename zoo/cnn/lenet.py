"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, section II), in its modern form.

6 and 16 kernels of 5x5, dense layers of 120 and 84, on 32x32x1. As in most later versions, and unlike the paper, every
map of the second convolution sees every map of the first, pooling is a plain mean without weights, and the output is a
dense layer of logits instead of distances to prototypes. The activation is the paper's, tanh.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Conv, DenseOverMap, check_images
from zoo.features import sow
from zoo.ops.pooling import avg_pool
from zoo.registry import register


@register(
    "lenet5",
    family="cnn",
    input_shape=(32, 32, 1),
    paper="LeCun et al. 1998, Gradient-based learning applied to document recognition",
)
class LeNet5(nn.Module):
    """Images [B, H, W, C], at least 16 x 16, to logits [B, num_classes].

    Features: stage1, stage2 (at strides 2, 4), hidden1, hidden2, pooled (the same as hidden2).
    """

    num_classes: int | None = 10  # None: no head, the result is `pooled`
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    head = "fc3"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=16)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate((6, 16), start=1):
            x = nn.tanh(Conv(width, (5, 5), padding="VALID", **dtypes, name=f"conv{i}")(x))
            x = sow(self, f"stage{i}", avg_pool(x, 2, 2))  # 28 -> 14, then 10 -> 5
        x = sow(self, "hidden1", nn.tanh(DenseOverMap(120, **dtypes, name="fc1")(x)))
        x = sow(self, "hidden2", nn.tanh(nn.Dense(84, **dtypes, name="fc2")(x)))
        x = sow(self, "pooled", x)
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **dtypes, name="fc3")(x)
