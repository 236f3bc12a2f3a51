"""A fast network for small images: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.

A fixed 2x2 convolution with the whitening filters of the training images' patches (`calibrate`); three blocks of
convolution, max-pool, norm, GELU, convolution, norm, GELU; a global maximum; logits scaled by 1 / 9. Norms have a bias
and no scale, and convolutions start as the identity on their first channels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.cnn.layers import BatchNorm, Conv, Layer, check_images
from zoo.features import sow
from zoo.ops.pooling import max_pool
from zoo.registry import register

gelu = partial(nn.gelu, approximate=True)


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """LeCun's uniform kernel [h, w, in, out] whose first `in` outputs are the identity (torch's `dirac_`)."""
    height, width, channels, out = shape
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    same = min(channels, out)
    kernel = kernel.at[:, :, :, :same].set(0)
    return kernel.at[height // 2, width // 2, jnp.arange(same), jnp.arange(same)].set(1)


class AirBlock(nn.Module):
    """Twice convolution, norm, GELU; the map is halved before the first norm."""

    width: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool(self.conv(self.width, name="conv1")(x), 2, 2)
        x = gelu(self.norm(name="norm1")(x))
        return gelu(self.norm(name="norm2")(self.conv(self.width, name="conv2")(x)))


@register(
    "airbench",
    family="cnn",
    input_shape=(32, 32, 3),
    paper="Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv:2404.00498",
)
class AirBench(nn.Module):
    """Images [B, H, W, C], at least 9 x 9, to logits [B, num_classes].

    Features: stage1, stage2, stage3 (at strides 2, 4, 8), pooled. `axis_name`: see `ResNet`. The whitening kernel is
    in the collection `constants`, which no optimizer changes.
    """

    widths: tuple[int, int, int] = (64, 256, 256)
    num_classes: int | None = 10  # None: no head, the result is `pooled`
    logit_scale: float = 1 / 9
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "fc"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_images(self, x, least=9)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        new_conv: Layer = partial(Conv, kernel_size=(3, 3), use_bias=False, kernel_init=dirac, **dtypes)
        norm: Layer = partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.6,
            epsilon=1e-12,
            use_scale=False,
            axis_name=self.axis_name if train else None,
            **dtypes,
        )
        x = gelu(Whitening(**dtypes, name="whiten")(x))
        for i, width in enumerate(self.widths, start=1):
            x = sow(self, f"stage{i}", AirBlock(width, new_conv, norm, name=f"layer{i}")(x))  # 15, 7, 3 a side
        x = sow(self, "pooled", jnp.max(x, axis=(1, 2)))
        if self.num_classes is None:
            return x
        return self.logit_scale * nn.Dense(self.num_classes, use_bias=False, **dtypes, name="fc")(x)

    def calibrate(self, variables: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
        """`variables` with the whitening kernel of normalised training images float32 [n, H, W, C], a few thousand."""
        kernel = whitening_kernel(np.asarray(images, np.float32)).astype(np.dtype(self.param_dtype))
        return {**variables, "constants": {"whiten": {"kernel": jnp.asarray(kernel)}}}


class Whitening(nn.Module):
    """A 2x2 convolution without padding to 8 channels per input channel; only its bias is trained."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (2, 2, channels, 8 * channels)
        init = nn.initializers.lecun_normal()
        kernel = self.variable(
            "constants", "kernel", lambda: init(self.make_rng("params"), shape, self.param_dtype)
        ).value
        bias = self.param("bias", nn.initializers.zeros, (shape[-1],), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, jax.lax.stop_gradient(kernel), bias, dtype=self.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias


def whitening_kernel(images: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """The kernel [2, 2, C, 8 C] that whitens the 2x2 patches of `images` [n, H, W, C], and its negative (section 3.1).

    Output i is the patches' i-th principal component over the root of its variance plus `epsilon`.
    """
    channels = images.shape[-1]
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))  # [n, H - 1, W - 1, C, 2, 2]
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 4 * channels)
    variances, directions = np.linalg.eigh(np.cov(patches, rowvar=False).astype(np.float64))
    kernel = (directions / np.sqrt(variances + epsilon))[:, ::-1].reshape(2, 2, channels, 4 * channels)
    return np.concatenate([kernel, -kernel], axis=-1)
