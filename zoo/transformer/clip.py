"""CLIP (Radford et al. 2021, arXiv:2103.00020): images and texts embedded in one space, to classify by a description.

A ViT and a causal Transformer, each with a projection to the same size. A score is the cosine of image and text times a
learned scale; the softmax over texts names the class of an image without training ("zero-shot").
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.ops.attention import Implementation, Mask
from zoo.ops.dense import dot_general
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import take_rows
from zoo.registry import register
from zoo.sequence import check_room, check_tokens
from zoo.transformer.layers import PARTITION_RULES, Activation, Context, Remat, new_dense, new_norm, new_stack
from zoo.transformer.vit import ViT


class CLIP(nn.Module):
    """Images [B, image_size, image_size, C] and texts int32 [N, T] to scores [B, N], logits over the texts.

    A text is as long as `lengths[n]`, default T, and its last token, which ends it, gives its state. `encode_image` and
    `encode_text` give vectors [B, embedding_size] and [N, embedding_size] of length 1, in float32 or more. Features:
    image/..., those of ViT; text/layers/layer0/hidden, ...; text/normalised.
    """

    embedding_size: int = 512  # of the space of images and texts
    image_size: int = 224
    patch_size: int = 32
    hidden_size: int = 768  # of the images' tower, as the next two
    num_layers: int = 12
    num_heads: int = 12
    vocab_size: int = 49408
    max_length: int = 77  # the most tokens of a text
    text_hidden_size: int = 512
    text_num_layers: int = 12
    text_num_heads: int = 8
    activation: Activation = "quick_gelu"
    norm_epsilon: float = 1e-5
    remat: Remat = "none"  # what the backward pass recomputes
    attention: Implementation | None = None  # default: by platform and shape
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    partition_rules = PARTITION_RULES

    def setup(self) -> None:
        shared = {name: getattr(self, name) for name in ("activation", "norm_epsilon", "remat", "attention")}
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        sizes = {name: getattr(self, name) for name in ("image_size", "patch_size", "hidden_size", "num_layers")}
        of_image = {**sizes, "num_heads": self.num_heads, "num_classes": None, "patch_bias": False, "norm_first": True}
        self.image = ViT(**of_image, **shared, **dtypes)
        self.text = TextTower(
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            hidden_size=self.text_hidden_size,
            num_layers=self.text_num_layers,
            num_heads=self.text_num_heads,
            **shared,
            **dtypes,
        )
        project = functools.partial(nn.Dense, self.embedding_size, use_bias=False, dot_general=dot_general, **dtypes)
        self.image_projection, self.text_projection = project(), project()
        self.log_scale = self.param("log_scale", nn.initializers.constant(2.6592), (), self.param_dtype)  # ln(1 / 0.07)

    def __call__(
        self, images: jax.Array, texts: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        images, texts = self.encode_image(images, train), self.encode_text(texts, lengths, train)
        return (jnp.exp(self.log_scale.astype(images.dtype)) * (images @ texts.T)).astype(self.dtype)

    def encode_image(self, images: jax.Array, train: bool = False) -> jax.Array:
        return _unit(self.image_projection(self.image(images, train)))

    def encode_text(self, texts: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        return _unit(self.text_projection(self.text(texts, lengths, train)))


class TextTower(nn.Module):
    """Tokens int32 [N, T] to the state of the last of the first `lengths[n]`, [N, hidden_size]: a GPT-2."""

    vocab_size: int
    max_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    activation: Activation
    norm_epsilon: float
    remat: Remat
    attention: Implementation | None
    dtype: Any
    param_dtype: Any

    mlp_size = None  # 4 hidden_size
    dropout_rate = 0.0
    scan_layers = False

    @property
    def settled(self) -> dict[str, int]:
        """Derived defaults, filled in."""
        return {"mlp_size": 4 * self.hidden_size}

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        check_tokens(self, tokens, self.vocab_size, lengths)
        check_room(self, tokens.shape[1])
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(new_norm, norm="layer", epsilon=self.norm_epsilon, use_bias=True, **dtypes)
        std = self.hidden_size**-0.5
        residual = std * (2 * self.num_layers) ** -0.5  # as in the authors' code
        dense = functools.partial(new_dense, std=std, residual_std=residual, use_bias=True, **dtypes)

        def table(name: str, rows: int, std: float) -> jax.Array:
            init = nn.initializers.normal(std)
            return self.param(name, init, (rows, self.hidden_size), self.param_dtype).astype(self.dtype)

        x = take_rows(table("embedding", self.vocab_size, 0.02), tokens)
        x = x + table("positions", self.max_length, 0.01)[: tokens.shape[1]]
        x, _ = new_stack(self, dense=dense, norm=norm)(name="layers")(x, Context(Mask(True), train=train))
        x = sow(self, "normalised", norm(name="norm")(x))
        if lengths is None:
            return x[:, -1]
        return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]


def _unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] brought to length 1."""
    wide = x.astype(at_least_float32(x))
    return wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)


SIZES: dict[str, dict[str, Any]] = {
    "clip_vit_base32": {},
    "clip_vit_base16": {"patch_size": 16},
    "clip_vit_large14": {
        **{"embedding_size": 768, "patch_size": 14, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
        **{"text_hidden_size": 768, "text_num_heads": 12},
    },
}
for _name, _row in SIZES.items():
    register(
        _name,
        family="transformer",
        input_shape=(224, 224, 3),
        more_inputs={"texts": ((77,), "int32")},
        paper="Radford et al. 2021, arXiv:2103.00020",
    )(functools.partial(CLIP, **_row))
