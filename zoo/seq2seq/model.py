"""Shared parts of the recurrent encoder-decoders: the protocol, embeddings, and the head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.features import sow
from zoo.lstm.layers import RecurrentLayer, Rows, Weights
from zoo.ops.recurrence import Cell, take_rows
from zoo.sequence import check_begun, check_source, check_tokens


class Seq2Seq(nn.Module):
    """Target tokens [B, T] and a source to next-token logits [B, T, vocab_size], by `zoo.sequence`.

    A subclass defines `build`, which makes its layers; `read_source`, which returns what the decoder reads of a source
    and its initial state; and `decode`, from embeddings to the head's input.
    """

    vocab_size: int = 30_000
    source_vocab_size: int | None = None  # of a source with a separate embedding; default: shared with the target
    embedding_size: int = 1000
    hidden_size: int = 1000
    num_layers: int = 1
    dropout_rate: float = 0.0  # of the embeddings, between layers and before the head
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another vocabulary
    embeddings = ("embedding", "source_embedding")

    def build(self) -> None:
        raise NotImplementedError

    def read_source(self, source: jax.Array, lengths: jax.Array, train: bool) -> tuple[dict[str, Any], Any]:
        """For a source [B, S]: the constant part of the state, and the decoder's initial state."""
        raise NotImplementedError

    def decode(
        self, x: jax.Array | Rows, decoder: Any, memory: dict[str, Any], lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Any]:
        """Embeddings [B, T, embedding_size] to the head's input [B, T, width], and the decoder's state after them."""
        raise NotImplementedError

    def setup(self) -> None:
        table = {"features": self.embedding_size, "dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embedding = nn.Embed(self.vocab_size, **table)
        if self.source_vocab_size is not None:
            self.source_embedding = nn.Embed(self.source_vocab_size, **table)
        self.dropout = nn.Dropout(self.dropout_rate)
        self.build()
        self.head_layer = nn.Dense(self.vocab_size, dtype=self.dtype, param_dtype=self.param_dtype, name="head")

    def embed(self, tokens: jax.Array, train: bool, of_source: bool = False) -> jax.Array | Rows:
        own = of_source and self.source_vocab_size is not None
        table = (self.source_embedding if own else self.embedding).embedding.astype(self.dtype)
        if not (train and self.dropout_rate):
            return Rows(table, tokens)
        return self.dropout(take_rows(table, tokens), deterministic=False)

    def encode(self, source: jax.Array, source_lengths: jax.Array | None, max_length: int = 0) -> dict[str, Any]:
        """The state before the first target token, with the source [B, S] encoded; of the same size for any
        `max_length`."""
        memory, decoder = self.read(source, source_lengths, train=False)
        return {"decoder": decoder, "position": jnp.zeros((len(source),), jnp.int32), "source": memory}

    def read(self, source: jax.Array, lengths: jax.Array | None, train: bool) -> tuple[dict[str, Any], Any]:
        check_source(self, source, lengths)
        rows, steps = source.shape
        lengths = jnp.full((rows,), steps, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
        memory, decoder = self.read_source(source, lengths, train)
        return {**memory, "lengths": lengths}, decoder

    def __call__(
        self,
        tokens: jax.Array,
        state: Any = None,
        lengths: jax.Array | None = None,
        train: bool = False,
        source: jax.Array | None = None,
        source_lengths: jax.Array | None = None,
    ) -> Any:
        check_tokens(self, tokens, self.vocab_size, lengths)
        if self.is_initializing() and state is None and source is None:
            source = jnp.zeros_like(tokens)  # parameters do not depend on the source
        check_begun(self, state, source, source_lengths)
        if source is None:
            memory, decoder = state["source"], state["decoder"]
        else:
            memory, decoder = self.read(source, source_lengths, train)
        if len(memory["lengths"]) != len(tokens):
            raise ZooError(f"{type(self).__name__}: {len(tokens)} targets for {len(memory['lengths'])} sources")
        hidden, decoder = self.decode(self.embed(tokens, train), decoder, memory, lengths, train)
        logits = self.head_layer(self.dropout(sow(self, "hidden", hidden), deterministic=not train))
        if state is None:
            return logits
        consumed = tokens.shape[1] if lengths is None else lengths
        position = (state["position"] + consumed).astype(jnp.int32)
        return logits, {"decoder": decoder, "position": position, "source": memory}


class Cells(nn.Module):
    """Weights of the stacked cells, layer0, ..., of a decoder that writes out its steps."""

    cell: Cell
    hidden_size: int
    num_layers: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, width: int) -> list[Weights]:
        """Weights for inputs of a width."""
        layers = [
            RecurrentLayer(
                cell=self.cell,
                hidden_size=self.hidden_size,
                reverse=False,
                weight_dropout_rate=0.0,
                forget_bias=1.0,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"layer{i}",
            )
            for i in range(self.num_layers)
        ]
        return [layer.weights(self.hidden_size if i else width, train=False) for i, layer in enumerate(layers)]


def present_steps(steps: int, lengths: jax.Array | None) -> jax.Array | None:
    """Which of `steps` exist in each row, bool [T, B, 1]."""
    return None if lengths is None else (jnp.arange(steps)[:, None] < lengths)[..., None]


def kept(present: jax.Array | None, new: Any, old: Any) -> Any:
    """The new carry, leaves [B, ...] in the dtypes of the old one; rows not present [B, 1] keep the old one."""
    new = jax.tree.map(lambda now, was: now.astype(was.dtype), new, old)
    return new if present is None else jax.tree.map(lambda now, was: jnp.where(present, now, was), new, old)


def reversed_rows(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """x [B, S, ...] with the steps of each row reversed and its padding in place; its own inverse."""
    places = jnp.arange(x.shape[1])
    places = jnp.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
