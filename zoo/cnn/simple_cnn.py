"""Two convolutions and two dense layers: the network of many CIFAR-10 tutorials.

3x3 conv 32, ReLU, 2x2 max-pool, 3x3 conv 64, ReLU, 2x2 max-pool, dense 1024, ReLU, dense `num_classes`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Conv, DenseOverMap, check_images
from zoo.features import sow
from zoo.ops.pooling import max_pool
from zoo.registry import register


@register("simple_cnn", family="cnn", input_shape=(32, 32, 3))
class SimpleCNN(nn.Module):
    """Images [B, H, W, C] to logits [B, num_classes]; H and W at least 4.

    Features: stage1, stage2 (at strides 2, 4), hidden, pooled (the same).
    """

    num_classes: int | None = 10  # None: no head, the result is `pooled`
    widths: tuple[int, ...] = (32, 64)
    hidden_size: int = 1024
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    head = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=2 ** len(self.widths))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.widths, start=1):
            x = Conv(width, (3, 3), kernel_init=nn.initializers.he_normal(), **dtypes, name=f"conv{i}")(x)
            x = sow(self, f"stage{i}", max_pool(nn.relu(x), 2, 2))  # [B, H / 2^i, W / 2^i, width]
        x = DenseOverMap(self.hidden_size, **dtypes, name="fc1")(x)
        x = sow(self, "pooled", sow(self, "hidden", nn.relu(x)))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **dtypes, name="fc2")(x)
