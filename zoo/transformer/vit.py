"""The Vision Transformer: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1.

Each patch of the image becomes a token by one dense layer (a convolution whose stride is its width). A class token is
put in front, learned positions are added, and blocks with pre-normalisation follow; the normalised output of the class
token is classified. Initialisation as in the authors' code: Xavier, and a zero head. `tiny` and `small` are from
Touvron et al. 2021 (DeiT). With `pooling="mean"` there is no class token, and the mean of all patches is classified
(Beyer et al. 2022). DINOv2 (Oquab et al. 2023) scales what each layer adds, and in a second form has registers, tokens
beside the class token that nothing reads (Darcet et al. 2023).
"""

import functools
import math
import warnings
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.cnn.layers import Conv, check_images
from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.attention import Implementation, Mask
from zoo.ops.dense import dot_general
from zoo.ops.precision import at_least_float32
from zoo.registry import register
from zoo.transformer.layers import PARTITION_RULES, Activation, Context, LayerScale, Remat, new_norm, new_stack


def new_dense(features: int, name: str, residual: bool = False, *, dtype: Any, param_dtype: Any) -> nn.Dense:
    """A dense layer with Xavier's uniform kernel, the same for residual layers."""
    init = nn.initializers.xavier_uniform()
    return nn.Dense(features, True, dtype, param_dtype, kernel_init=init, dot_general=dot_general, name=name)


class ViT(nn.Module):
    """Images [B, image_size, image_size, C] to logits [B, num_classes].

    Features: embedded [B, T, hidden_size], the tokens, a class token first; layers/layer0/hidden,
    layers/layer0/attention/weights [B, N, T, T], ...; normalised; pooled [B, hidden_size], the head's input.
    """

    num_classes: int | None = 1000  # None: no head, the result is `pooled`
    image_size: int = 224  # pixels per side, a multiple of patch_size
    patch_size: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int | None = None  # default: 4 hidden_size
    pooling: Literal["token", "mean"] = "token"
    num_registers: int | None = None  # tokens after the class token that no output is of
    place_prefix: bool = True  # the class token and registers have positions too
    norm_last: bool = False  # with "mean": normalise the mean, not what it is of
    layer_scale: float | None = None  # the first scale of what each layer adds; default: no scale
    qk_norm: bool = False  # normalise each head's queries and keys
    patch_bias: bool = True
    norm_first: bool = False  # normalise the tokens before the layers (CLIP)
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0  # of the embedding and of each layer's output
    drop_path_rate: float = 0.0  # of the last layer's outputs for whole examples; layer i of n has i / (n - 1) of it
    scan_layers: bool = False  # compile one layer for any depth
    remat: Remat = "none"  # what the backward pass recomputes
    attention: Implementation | None = None  # default: by platform and shape
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another number of classes
    embeddings = ("patches", "class_token", "registers", "positions")
    partition_rules = PARTITION_RULES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self.check(x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        side, width = (self.patch_size, self.patch_size), self.hidden_size
        x = Conv(width, side, strides=side, padding="VALID", use_bias=self.patch_bias, **dtypes, name="patches")(x)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], width)  # [B, T, hidden_size], row by row
        tokens = []
        if self.pooling == "token":
            tokens.append(self.param("class_token", nn.initializers.zeros, (1, 1, width), self.param_dtype))
        if self.num_registers:
            init, shape = nn.initializers.normal(1e-6), (1, self.num_registers, width)
            tokens.append(self.param("registers", init, shape, self.param_dtype))
        length = x.shape[1] + self.placed
        positions = self.param("positions", nn.initializers.normal(0.02), (1, length, width), self.param_dtype)
        positions = positions.astype(self.dtype)
        x = x + positions[:, self.placed :]
        if tokens:
            prefix = jnp.concatenate(tokens, axis=1).astype(self.dtype)
            prefix = prefix + positions[:, : self.placed] if self.placed else prefix
            x = jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:])), x], axis=1)
        norm = functools.partial(new_norm, norm="layer", epsilon=self.norm_epsilon, use_bias=True, **dtypes)
        if self.norm_first:
            x = norm(name="embedding_norm")(x)
        x = sow(self, "embedded", nn.Dropout(self.dropout_rate, deterministic=not train)(x))
        dense = functools.partial(new_dense, **dtypes)
        more: dict[str, Any] = {"qk_norm": norm if self.qk_norm else None, "drop_path_rate": self.drop_path_rate}
        if self.layer_scale is not None:
            more["layer_scale"] = functools.partial(LayerScale, self.layer_scale, self.param_dtype)
        x, _ = new_stack(self, dense=dense, norm=norm, **more)(name="layers")(x, Context(Mask(), train=train))
        if not self.norm_last:
            x = sow(self, "normalised", norm(name="norm")(x))
        if self.pooling == "token":
            x = x[:, 0]
        else:
            x = jnp.mean(x[:, self.num_registers or 0 :], axis=1, dtype=at_least_float32(x)).astype(x.dtype)
        x = sow(self, "pooled", norm(name="norm")(x) if self.norm_last else x)
        if self.num_classes is None:
            return x
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, **dtypes, name="head")(x)

    @property
    def settled(self) -> dict[str, int]:
        """Derived defaults, filled in."""
        return {"mlp_size": self.mlp_size or 4 * self.hidden_size}

    @property
    def placed(self) -> int:
        """The number of tokens before the patches that have positions."""
        return (int(self.pooling == "token") + (self.num_registers or 0)) * self.place_prefix

    def check(self, x: jax.Array) -> None:
        """ZooError for inputs that are not images of the model's size, and for a size that patches do not divide."""
        if self.image_size % self.patch_size:
            raise ZooError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        check_images(self, x)
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ZooError(f"images are {x.shape[1]} x {x.shape[2]} pixels; the ViT's image_size is {self.image_size}")

    def fit_positions(self, positions: np.ndarray) -> np.ndarray:
        """Positions [1, T, hidden_size] of another image size, resized to this model's, with a warning.

        Those of a class token and of registers stay. Positions that fit already, or do not form a square, are returned
        unchanged.
        """
        tokens, side = self.placed, self.image_size // self.patch_size
        old = math.isqrt(max(positions.shape[1] - tokens, 0)) if positions.ndim == 3 else 0
        if old in (0, side) or old**2 + tokens != positions.shape[1]:
            return positions
        warnings.warn(f"positions of {old} x {old} patches are resized to {side} x {side}", stacklevel=3)
        matrix, width = cubic(old, side), positions.shape[-1]
        grid = positions[0, tokens:].astype(np.float32).reshape(old, old, width)
        grid = np.einsum("yi,xj,ijd->yxd", matrix, matrix, grid, optimize=True).reshape(1, -1, width)
        return np.concatenate([positions[:, :tokens], grid.astype(positions.dtype)], axis=1)


def cubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """The matrix [new, old] of cubic interpolation along one axis, with half-pixel centers and edges repeated: Keys
    1981, equation 4, with the `a` of torch's `interpolate`."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old), np.float32)
    for step in range(-1, 3):
        at = np.floor(places) + step
        s = np.abs(places - at)
        near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
        np.add.at(matrix, (np.arange(new), np.clip(at, 0, old - 1).astype(int)), np.where(s <= 1, near, far))
    return matrix


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_heads": 3},
    "small": {"hidden_size": 384, "num_heads": 6},
    "base": {},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16},
}
for _size, _row in SIZES.items():
    for _side in (16, 32):
        register(
            f"vit_{_size}{_side}",
            family="transformer",
            input_shape=(224, 224, 3),
            paper="Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929",
        )(functools.partial(ViT, patch_size=_side, **_row))
DINOV2: dict[str, Any] = {"patch_size": 14, "image_size": 518, "layer_scale": 1e-5, "num_classes": None}
REGISTERS: dict[str, Any] = {"num_registers": 4, "place_prefix": False}
for _size in ("small", "base", "large"):
    for _suffix, _more in (("", {}), ("_reg4", REGISTERS)):
        register(
            f"dinov2_{_size}14{_suffix}",
            family="transformer",
            input_shape=(518, 518, 3),
            paper="Oquab et al. 2023, DINOv2, arXiv:2304.07193"
            + (", Darcet et al. 2023, arXiv:2309.16588" if _more else ""),
        )(functools.partial(ViT, **DINOV2, **SIZES[_size], **_more))
