"""Feature pyramids (Lin et al. 2017, "Feature pyramid networks for object detection") on any backbone.

A 1x1 convolution brings each stage to one width, coarser maps are added to finer ones (nearest neighbour), and a 3x3
convolution smooths each. Beyond the last stage there are further maps at half the size each: its maxima ("pool"), or
two strided convolutions ("convolutions", RetinaNet's P6 and P7).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.backbone import backbone_stages
from zoo.cnn.layers import Conv

Top = Literal["pool", "convolutions"]
uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Pyramid(nn.Module):
    """Images [B, H, W, C] to maps [B, H / stride, W / stride, width], finest first."""

    backbone_name: str
    backbone_args: Mapping[str, Any]
    stages: tuple[str, ...]
    width: int
    top: Top
    dtype: Any
    param_dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        conv = partial(Conv, self.width, kernel_init=uniform, dtype=self.dtype, param_dtype=self.param_dtype)
        maps = backbone_stages(self, self.backbone_name, self.backbone_args, self.stages, x, train)
        found: list[jax.Array] = []
        coarser = None
        for level in reversed(range(len(maps))):
            x = conv((1, 1), name=f"fpn_inner_blocks_{level}_0")(maps[level])
            if coarser is not None:
                x = x + nearest(coarser, x.shape[1:3])
            coarser = x
            found.insert(0, conv((3, 3), padding=1, name=f"fpn_layer_blocks_{level}_0")(x))
        if self.top == "pool":
            found.append(found[-1][:, ::2, ::2])
        else:
            found.append(conv((3, 3), strides=2, padding=1, name="fpn_extra_blocks_p6")(found[-1]))
            found.append(conv((3, 3), strides=2, padding=1, name="fpn_extra_blocks_p7")(nn.relu(found[-1])))
        return found


def nearest(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """[B, h, w, C] to [B, *size, C]: row i of n is row floor(i h / n)."""
    for axis, cells in enumerate(size, start=1):
        side = x.shape[axis]
        if cells == 2 * side:
            x = jnp.repeat(x, 2, axis=axis)
        elif cells != side:
            x = jnp.take(x, jnp.arange(cells) * side // cells, axis=axis)
    return x
