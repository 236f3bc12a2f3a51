"""`lstm_classifier`: text classification by a bidirectional LSTM with pooling over time.

Pooling is the last state of each direction (Graves and Schmidhuber 2005), the mean or maximum over time (Conneau et al.
2017), or attention: a mean weighted by one hidden layer (Lin et al. 2017, one head).
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import Cell, take_rows
from zoo.registry import register
from zoo.sequence import check_tokens


@register("lstm_classifier", family="lstm", input_shape=(64,), input_dtype="int32", paper="Conneau et al. 2017")
class RecurrentClassifier(nn.Module):
    """Tokens [B, T], `lengths[b]` in row b, to logits [B, num_classes].

    Features: pooled, the head's input; attention, the weights over time [B, T] if they pool; layers/..., as `Recurrent`
    lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 10_000
    num_classes: int = 2
    cell: Cell = "lstm"
    embedding_size: int = 300
    hidden_size: int = 256  # of each direction
    num_layers: int = 1
    bidirectional: bool = True
    pooling: Literal["last", "mean", "max", "attention"] = "last"
    dropout_rate: float = 0.0  # of the embedding, between layers and before the head
    word_dropout_rate: float = 0.0  # of whole tokens: their embedding becomes zero
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another number of classes
    embeddings = ("embedding",)

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        check_tokens(self, tokens, self.vocab_size, lengths)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        table = nn.Embed(self.vocab_size, self.embedding_size, name="embedding", param_dtype=self.param_dtype)
        x: jax.Array | Rows = Rows(table.embedding.astype(self.dtype), tokens)
        if train and (self.dropout_rate or self.word_dropout_rate):
            words = nn.Dropout(self.word_dropout_rate, broadcast_dims=(2,), deterministic=False)
            x = dropout(words(take_rows(*x)))
        layers = Recurrent(
            cell=self.cell,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layers",
        )
        outputs, state = layers(x, layers.init_state(tokens.shape[0]), lengths, train)
        if self.pooling == "last":
            pooled = jnp.concatenate([state[name][0] for name in layers.directions(self.num_layers - 1)], axis=-1)
        else:
            pooled = self.pool(outputs, lengths)
        pooled = dropout(sow(self, "pooled", pooled))
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(pooled)

    def pool(self, outputs: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """[B, T, D] to [B, D] over each row's steps; zeros for an empty row."""
        rows, steps, width = outputs.shape
        counts = jnp.full((rows,), steps) if lengths is None else lengths
        present = (jnp.arange(steps) < counts[:, None])[..., None]
        some = (counts > 0)[:, None]
        if self.pooling == "max":
            return jnp.where(some, jnp.max(outputs, axis=1, initial=-jnp.inf, where=present), 0).astype(self.dtype)
        if self.pooling == "mean":
            total = jnp.sum(outputs, axis=1, where=present, dtype=at_least_float32(outputs))
            return (total / jnp.maximum(counts, 1)[:, None]).astype(self.dtype)
        dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scores = nn.Dense(1, **dense, name="score")(jnp.tanh(nn.Dense(width, **dense, name="attend")(outputs)))
        weights = jax.nn.softmax(scores.astype(at_least_float32(scores)), axis=1, where=present)
        weights = sow(self, "attention", jnp.where(present & some[..., None], weights, 0)[..., 0])
        return jnp.einsum("bt,btd->bd", weights.astype(self.dtype), outputs)
