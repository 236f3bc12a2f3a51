"""Models of flax.linen's own layers, as flax's examples use them, that a training step takes in place of ours.

Each has as many parameters as ours of its recipe, and computes the same. There is none of `multi30k-gru`: flax has no
attentive decoder.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.recurrent import LinenLM


class ResNet50(nn.Module):
    """ResNet-50 of bottlenecks that stride in their 3x3 convolution."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            for i in range(blocks):
                strides = (2, 2) if stage and not i else (1, 1)
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = nn.relu(norm()(conv(width, (3, 3), strides)(y)))
                y = norm(scale_init=nn.initializers.zeros_init())(conv(4 * width, (1, 1))(y))
                if y.shape != x.shape:
                    x = norm()(conv(4 * width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))


class GPT(nn.Module):
    """GPT-2 over documents that share a row; positions are counted in the row."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_length: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False, segments: jax.Array | None = None) -> jax.Array:
        embedding = nn.Embed(self.vocab_size, self.hidden_size, self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = embedding(tokens) + nn.Embed(self.max_length, self.hidden_size, self.dtype)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        if segments is not None:
            mask = nn.combine_masks(mask, nn.make_attention_mask(segments, segments, jnp.equal))
        for _ in range(self.num_layers):
            x += nn.MultiHeadDotProductAttention(self.num_heads, self.dtype)(norm()(x), mask=mask)
            x += dense(self.hidden_size)(nn.gelu(dense(4 * self.hidden_size)(norm()(x))))
        return embedding.attend(norm()(x))


def flax_model(recipe: str, model: Any) -> nn.Module | None:
    """The model of flax's layers that computes what a recipe's `model` of ours does, or None."""
    if recipe == "imagenet-resnet50":
        return ResNet50(model.num_classes, model.dtype)
    if recipe == "lstm":
        return LinenLM(model.cell, model.vocab_size, model.hidden_size, model.num_layers)
    if recipe == "gpt2-medium":
        fields = ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_length", "dtype")
        return GPT(*(getattr(model, field) for field in fields))
    return None
