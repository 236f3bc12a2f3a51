"""Residual networks: He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition".

Two forms of one module. `stem="imagenet"` is torchvision's: unlike the paper, a bottleneck strides in its 3x3
convolution, not in its first 1x1. `stem="cifar"` is section 4.2 of the paper: a 3x3 convolution, three stages, and
`shortcut="pad"`, option A: subsampling by 2 and zeros for the new channels, so that shortcuts have no parameters. (The
paper does not say where the zero channels go; here half on each side.)

ResNet-D (He et al. 2019, section 4.2) has a `deep` stem of three 3x3 convolutions and shortcuts that `pool` before they
project. The 3x3 convolution of a wide ResNet (Zagoruyko and Komodakis 2016) has `group_width` channels for every 64, in
ResNeXt (Xie et al. 2017) for each of its `groups`.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean
from zoo.features import sow
from zoo.ops.pooling import avg_pool, max_pool
from zoo.registry import register


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (`basic`), or 1x1, 3x3, 1x1 to four times the width (`bottleneck`), and the shortcut."""

    width: int
    strides: int
    block: str
    shortcut: str
    groups: int
    group_width: int
    conv: Layer
    norm: Layer
    dilation: int = 1  # of 3x3 convolutions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.block == "basic":
            out = self.width
            y = self.conv(self.width, 3, self.strides, name="conv1", dilation=self.dilation)(x)
            y = nn.relu(self.norm(name="bn1")(y))
            y = self.norm(name="bn2")(self.conv(out, 3, 1, name="conv2", dilation=self.dilation)(y))
        else:
            out = 4 * self.width
            inner = self.width * self.group_width // 64 * self.groups
            y = nn.relu(self.norm(name="bn1")(self.conv(inner, 1, 1, name="conv1")(x)))
            y = self.conv(inner, 3, self.strides, name="conv2", groups=self.groups, dilation=self.dilation)(y)
            y = nn.relu(self.norm(name="bn2")(y))
            y = self.norm(name="bn3")(self.conv(out, 1, 1, name="conv3")(y))
        if x.shape[-1] != out or self.strides != 1:
            if self.shortcut == "pool":
                x = avg_pool(x, 2, 2, ceil_mode=True) if self.strides == 2 else x
                x = self.norm(name="downsample_2")(self.conv(out, 1, 1, name="downsample_1")(x))
            elif self.shortcut == "projection":
                x = self.norm(name="downsample_1")(self.conv(out, 1, self.strides, name="downsample_0")(x))
            else:
                extra = out - x.shape[-1]
                x = x[:, :: self.strides, :: self.strides]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images [B, H, W, C] to logits [B, num_classes].

    Features: stem, stage1, stage2, ... (their outputs, at strides 4, 8, 16, 32 with the imagenet stem), pooled.
    `axis_name` is the mapped axis over which batch statistics are averaged under pmap; under jit and on a mesh they are
    global without it.
    """

    stage_sizes: tuple[int, ...]
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["imagenet", "deep", "cifar"] = "imagenet"
    shortcut: Literal["projection", "pool", "pad"] = "projection"
    width: int = 64
    groups: int = 1  # of a bottleneck's 3x3 convolution
    group_width: int = 64  # its channels in each group, for every 64 of `width`
    output_stride: int | None = None  # beyond which stages dilate instead of striding (Chen et al. 2017)
    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "fc"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)

        if self.stem == "deep":
            for place, strides in ((0, 2), (3, 1)):
                x = new_conv(self.width // 2, 3, strides, name=f"conv1_{place}")(x)
                x = nn.relu(norm(name=f"conv1_{place + 1}")(x))
            x = new_conv(self.width, 3, 1, name="conv1_6")(x)
        else:
            size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
            x = new_conv(self.width, size, strides, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        x = sow(self, "stem", x)
        if self.stem != "cifar":
            x = max_pool(x, 3, 2, padding=1)  # [B, H / 4, W / 4, width]
        stride, dilation = 1 if self.stem == "cifar" else 4, 1
        for stage, blocks in enumerate(self.stage_sizes):
            halves = stage > 0 and (self.output_stride is None or 2 * stride <= self.output_stride)
            before, dilation = dilation, dilation * (1 if stage == 0 or halves else 2)
            stride *= 2 if halves else 1
            for i in range(blocks):
                strides = 2 if halves and i == 0 else 1
                x = ResidualBlock(
                    self.width * 2**stage,
                    strides,
                    self.block,
                    self.shortcut,
                    self.groups,
                    self.group_width,
                    new_conv,
                    norm,
                    before if i == 0 else dilation,
                    name=f"layer{stage + 1}_{i}",
                )(x)
            x = sow(self, f"stage{stage + 1}", x)
        x = sow(self, "pooled", global_mean(x))  # [B, C]
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, **dtypes, name="fc")(x)


IMAGENET: dict[str, dict[str, Any]] = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2)},
    "resnet34": {"stage_sizes": (3, 4, 6, 3)},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"stage_sizes": (3, 8, 36, 3), "block": "bottleneck"},
    "resnet50d": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck", "stem": "deep", "shortcut": "pool"},
    "resnet101d": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck", "stem": "deep", "shortcut": "pool"},
    "wide_resnet50_2": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck", "group_width": 128},
    "wide_resnet101_2": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck", "group_width": 128},
    "resnext50_32x4d": {"stage_sizes": (3, 4, 6, 3), "block": "bottleneck", "groups": 32, "group_width": 4},
    "resnext101_32x8d": {"stage_sizes": (3, 4, 23, 3), "block": "bottleneck", "groups": 32, "group_width": 8},
}
CIFAR: dict[str, dict[str, Any]] = {  # depth 6 n + 2
    "resnet8": {"stage_sizes": (1, 1, 1)},
    "resnet20": {"stage_sizes": (3, 3, 3)},
    "resnet32": {"stage_sizes": (5, 5, 5)},
    "resnet44": {"stage_sizes": (7, 7, 7)},
    "resnet56": {"stage_sizes": (9, 9, 9)},
    "resnet110": {"stage_sizes": (18, 18, 18)},
}
PAPER = "He et al. 2016, Deep residual learning for image recognition, arXiv:1512.03385"

for _name, _row in IMAGENET.items():
    register(_name, family="cnn", input_shape=(224, 224, 3), paper=PAPER)(partial(ResNet, **_row))
for _name, _row in CIFAR.items():
    register(_name, family="cnn", input_shape=(32, 32, 3), paper=PAPER)(
        partial(ResNet, **_row, stem="cifar", shortcut="pad", width=16, num_classes=10)
    )
