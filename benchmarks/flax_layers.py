"""Models of flax.linen's own layers, as flax's examples use them, that a training step takes in place of ours.

Each has as many parameters as ours of its recipe, and computes the same.
"""

import dataclasses
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


class Decoder(nn.Module):
    """One step of a GRU that looks at the source: the state [B, H] after a word, and the context that went with it."""

    hidden_size: int
    attention_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, state: jax.Array, word: jax.Array, values: jax.Array, keys: jax.Array, visible: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        query = dense(self.attention_size, name="query")(state)
        scores = dense(1, name="vector")(nn.tanh(query[:, None] + keys))[..., 0]
        context = jnp.einsum("bs,bsd->bd", nn.softmax(scores, where=visible), values)
        cell = nn.GRUCell(self.hidden_size, dtype=self.dtype, name="cell")
        state, _ = cell(state, jnp.concatenate([word, context], -1))
        return state, (state, context)


class GRUAttention(nn.Module):
    """A bidirectional GRU that reads the source, the decoder over it, and the maxout layer of Bahdanau et al. 2015."""

    vocab_size: int
    source_vocab_size: int
    embedding_size: int
    hidden_size: int
    attention_size: int
    maxout_size: int
    dropout_rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        source: jax.Array | None = None,
        source_lengths: jax.Array | None = None,
    ) -> jax.Array:
        source = tokens if source is None else source
        lengths = jnp.full(len(source), source.shape[1]) if source_lengths is None else source_lengths
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        embed = functools.partial(nn.Embed, features=self.embedding_size, dtype=self.dtype)
        forward, backward = (
            nn.RNN(nn.GRUCell(self.hidden_size, dtype=self.dtype, name=name), return_carry=True)
            for name in ("forward", "backward")
        )
        x = dropout()(embed(self.source_vocab_size, name="source_embedding")(source))
        (_, last), values = nn.Bidirectional(
            forward, backward, return_carry=True, merge_fn=lambda a, b: jnp.concatenate([a, b], -1)
        )(x, seq_lengths=lengths)
        keys = nn.Dense(self.attention_size, use_bias=False, dtype=self.dtype, name="key")(values)
        state = nn.tanh(nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype, name="begin")(last))
        words = dropout()(embed(self.vocab_size, name="embedding")(tokens))
        over_words: dict[str, Any] = {"in_axes": (1, *[nn.broadcast] * 3), "out_axes": 1}
        steps = nn.scan(Decoder, variable_broadcast="params", split_rngs={"params": False}, **over_words)
        visible = jnp.arange(source.shape[1]) < lengths[:, None]
        decoder = steps(self.hidden_size, self.attention_size, self.dtype, name="decoder")
        _, (hidden, context) = decoder(state, words, values, keys, visible)
        pieces = nn.Dense(2 * self.maxout_size, dtype=self.dtype, name="maxout")(
            jnp.concatenate([hidden, words, context], -1)
        )
        maxed = pieces.reshape(*pieces.shape[:2], self.maxout_size, 2).max(-1)
        return nn.Dense(self.vocab_size, dtype=self.dtype, name="head")(dropout()(maxed))


def flax_model(recipe: str, model: Any) -> nn.Module:
    """The model of flax's layers that computes what a recipe's `model` of ours does."""
    if recipe == "imagenet-resnet50":
        return ResNet50(model.num_classes, model.dtype)
    if recipe == "lstm":
        return LinenLM(model.cell, model.vocab_size, model.hidden_size, model.num_layers)
    kind = {"gpt2-medium": GPT, "multi30k-gru": GRUAttention}[recipe]
    names = (field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name"))
    return kind(**{name: getattr(model, name) for name in names})
