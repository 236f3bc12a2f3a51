"""U-Net: Ronneberger, Fischer and Brox 2015, "U-Net: convolutional networks for biomedical image segmentation".

`unet` is the paper's: convolutions without padding, so that 572 x 572 pixels give 388 x 388 logits, and the maps of the
way down are cut to those of the way up. Each level has two 3x3 convolutions; going up, a 2x2 transposed convolution
halves the channels. Dropout stands, as in the authors' network, at the end of the two deepest levels.

`unet_small` differs: narrow, padded convolutions, batch normalisation (Ioffe and Szegedy 2015), no dropout. It takes
images of any size: it pads them to whole steps of its strides, and cuts the logits.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cnn.layers import Conv, batch_norm, check_images, he_normal_fan_out
from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.pooling import max_pool
from zoo.registry import register


class UpConvolution(nn.Module):
    """A 2x2 transposed convolution of stride 2, [B, H, W, C] to [B, 2 H, 2 W, width].

    As one matrix product, since its windows do not overlap: the gradient of XLA's transposed convolution is slow on a
    CPU.
    """

    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=2, batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.width), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        rows, height, width, _ = x.shape
        y = jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel)
        return y.reshape(rows, 2 * height, 2 * width, self.width) + bias


class UNet(nn.Module):
    """Images [B, H, W, C] to logits [B, H - 2 margin, W - 2 margin, num_classes].

    `margin` is 0 with padding "same", with "valid" 92 for four steps down. ZooError for a size that "valid" does not
    halve evenly. Features: stage1, stage2, stage3, stage4, stage5 (on the way down, at strides 1, 2, 4, 8, 16), up1,
    up2, up3, up4 (on the way up). With more or fewer `widths` there are more or fewer.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)  # of the levels, the bottom last
    padding: Literal["valid", "same"] = "valid"
    norm: bool = False  # batch normalisation after each 3x3 convolution, which then has no bias
    dropout_rate: float = 0.5  # at the end of the two deepest levels
    num_classes: int = 2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "logits"
    segments = True  # logits for every pixel

    @property
    def margin(self) -> int:
        """Pixels of an image, on each side, for which there are no logits."""
        if self.padding == "same":
            return 0
        margin = 2  # of the bottom's two convolutions
        for _ in self.widths[1:]:
            margin = 2 * margin + 4  # those of a level, down and up
        return margin

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        height, width = x.shape[1:3]
        if self.padding == "same":
            step = 2 ** (len(self.widths) - 1)
            x = jnp.pad(x, ((0, 0), (0, -height % step), (0, -width % step), (0, 0)), mode="edge")
        else:
            self._check_sides(x)

        def convolutions(x: jax.Array, width: int, name: str) -> jax.Array:
            for i in (1, 2):
                conv = partial(Conv, width, (3, 3), padding=self.padding.upper(), kernel_init=he_normal_fan_out)
                x = conv(use_bias=not self.norm, **dtypes, name=f"{name}_conv{i}")(x)
                if self.norm:
                    x = batch_norm(train, self.axis_name, **dtypes, name=f"{name}_bn{i}")(x)
                x = nn.relu(x)
            return x

        levels: list[jax.Array] = []  # those of the way down, which the way up joins
        for level, channels in enumerate(self.widths, start=1):
            if levels:
                x = max_pool(levels[-1], 2, 2)
            x = convolutions(x, channels, f"down{level}")
            if level >= len(self.widths) - 1:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            levels.append(sow(self, f"stage{level}", x))
        for level in range(len(self.widths) - 1, 0, -1):
            skip, channels = levels[level - 1], self.widths[level - 1]
            x = UpConvolution(channels, **dtypes, name=f"upsample{level}")(x)
            top, left = ((a - b) // 2 for a, b in zip(skip.shape[1:3], x.shape[1:3], strict=True))
            skip = skip[:, top : top + x.shape[1], left : left + x.shape[2]]
            x = convolutions(jnp.concatenate([skip, x], axis=-1), channels, f"join{level}")
            x = sow(self, f"up{len(self.widths) - level}", x)
        logits = Conv(self.num_classes, (1, 1), **dtypes, name="logits")(x)
        return logits[:, :height, :width] if self.padding == "same" else logits

    def _check_sides(self, x: jax.Array) -> None:
        """ZooError unless valid convolutions leave an even map at each halving."""
        least, step = 2 * self.margin + 4, 2 ** (len(self.widths) - 1)
        if any(side < least or (side - least) % step for side in x.shape[1:3]):
            raise ZooError(
                f"a U-Net with valid convolutions takes sides of {least}, {least + step}, {least + 2 * step}, ... "
                f"pixels, not {x.shape[1]} x {x.shape[2]}"
            )


PAPER = "Ronneberger et al. 2015, U-Net: convolutional networks for biomedical image segmentation, arXiv:1505.04597"
SMALL: dict[str, Any] = {
    "widths": (16, 32, 64, 128, 256),
    "padding": "same",
    "norm": True,
    "dropout_rate": 0.0,
}

register("unet", family="cnn", input_shape=(572, 572, 1), paper=PAPER)(UNet)
register("unet_small", family="cnn", input_shape=(256, 256, 1), paper=PAPER)(partial(UNet, **SMALL))
