"""DeepLabv3 and FCN on a dilated residual network, as torchvision builds them.

Chen, Papandreou, Schroff and Adam 2017, "Rethinking atrous convolution for semantic image segmentation"; Long,
Shelhamer and Darrell 2015, "Fully convolutional networks for semantic segmentation". The ResNet's last two stages
dilate instead of striding. Unlike in the paper of FCN, there are no skips, and its head has a 3x3 convolution.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.backbone import backbone_stages
from zoo.cnn.layers import Layer, batch_norm, check_images, conv, global_mean
from zoo.features import sow
from zoo.registry import register

WIDTH = 256  # of the branches of atrous spatial pyramid pooling
STAGES = ("stage1", "stage2", "stage3", "stage4")
RATES = (12, 24, 36)  # their dilations at stride 8


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling, [B, H, W, C] to [B, H, W, 256]: a 1x1 convolution, three dilated ones, and the
    image's mean, joined by a 1x1 convolution and dropout."""

    conv: Layer
    norm: Layer
    dropout_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branches = [nn.relu(self.norm(name="convs_0_1")(self.conv(WIDTH, 1, 1, name="convs_0_0")(x)))]
        for i, rate in enumerate(RATES, start=1):
            y = self.conv(WIDTH, 3, 1, name=f"convs_{i}_0", dilation=rate)(x)
            branches.append(nn.relu(self.norm(name=f"convs_{i}_1")(y)))
        mean = self.conv(WIDTH, 1, 1, name="convs_4_1")(global_mean(x)[:, None, None])
        branches.append(jnp.broadcast_to(nn.relu(self.norm(name="convs_4_2")(mean)), branches[0].shape))
        y = self.conv(WIDTH, 1, 1, name="project_0")(jnp.concatenate(branches, axis=-1))
        y = nn.relu(self.norm(name="project_1")(y))
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class DeepLab(nn.Module):
    """Images [B, H, W, C] to logits [B, H, W, num_classes], enlarged eight times bilinearly.

    Features: stage1, stage2, stage3, stage4 (at strides 4, 8, 8, 8). With the field `auxiliary` there is one more of
    this name: the logits [B, H, W, num_classes] of a second head on stage3, whose loss is added in training.
    """

    classifier: Literal["deeplab", "fcn"] = "deeplab"
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)  # of the ResNet, which has bottlenecks
    width: int = 64
    auxiliary: bool = False
    dropout_rate: float | None = None  # default: 0.5 in the pyramid, 0.1 in fully convolutional heads
    num_classes: int = 21
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "classifier_4"
    segments = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(conv, **dtypes)
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, **dtypes)
        size = x.shape[1:3]

        plain, pyramid = (self.dropout_rate, self.dropout_rate) if self.dropout_rate is not None else (0.1, 0.5)

        def enlarged(y: jax.Array) -> jax.Array:
            return jax.image.resize(y, (y.shape[0], *size, y.shape[-1]), "bilinear")

        def fully_convolutional(y: jax.Array, name: str) -> jax.Array:
            y = nn.relu(norm(name=f"{name}_1")(new_conv(y.shape[-1] // 4, 3, 1, name=f"{name}_0")(y)))
            y = nn.Dropout(plain, deterministic=not train)(y)
            return new_conv(self.num_classes, 1, 1, name=f"{name}_4", use_bias=True)(y)

        args = {"stage_sizes": self.stage_sizes, "width": self.width, "output_stride": 8}
        stages = backbone_stages(self, "resnet50", args, STAGES, x, train, module="backbone")
        _, _, stage3, stage4 = (sow(self, name, y) for name, y in zip(STAGES, stages, strict=True))
        if self.auxiliary:
            sow(self, "auxiliary", enlarged(fully_convolutional(stage3, "aux_classifier")))
        if self.classifier == "fcn":
            return enlarged(fully_convolutional(stage4, "classifier"))
        y = PyramidPooling(new_conv, norm, pyramid, name="classifier_0")(stage4, train)
        y = nn.relu(norm(name="classifier_2")(new_conv(WIDTH, 3, 1, name="classifier_1")(y)))
        return enlarged(new_conv(self.num_classes, 1, 1, name="classifier_4", use_bias=True)(y))


DEEPLAB = "Chen et al. 2017, Rethinking atrous convolution for semantic image segmentation, arXiv:1706.05587"
FCN = "Long et al. 2015, Fully convolutional networks for semantic segmentation, arXiv:1411.4038"
VARIANTS: dict[str, dict[str, Any]] = {
    "deeplabv3_resnet50": {"stage_sizes": (3, 4, 6, 3)},
    "deeplabv3_resnet101": {"stage_sizes": (3, 4, 23, 3)},
    "fcn_resnet50": {"stage_sizes": (3, 4, 6, 3), "classifier": "fcn"},
    "fcn_resnet101": {"stage_sizes": (3, 4, 23, 3), "classifier": "fcn"},
}

for _name, _row in VARIANTS.items():
    _paper = FCN if "classifier" in _row else DEEPLAB
    register(_name, family="cnn", input_shape=(520, 520, 3), paper=_paper)(partial(DeepLab, **_row))
