"""`lstm_encoder`: one unit vector for a whole sequence, of a speaker's voice or a sentence.

The stack of Wan et al. 2018 (GE2E, arXiv:1710.10467): the last layer's state at the last step, a dense layer, length
one. Widths are those that became usual for speakers, 3 layers of 256; the paper's 768 and its projections are not.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows
from zoo.ops.recurrence import Cell
from zoo.registry import register
from zoo.sequence import check_tokens


@register("lstm_encoder", family="lstm", input_shape=(160, 40), paper="Wan et al. 2018, arXiv:1710.10467")
class RecurrentEncoder(nn.Module):
    """Features [B, T, F] (with a `vocab_size`, tokens [B, T]) to embeddings [B, embedding_size] of length one.

    Row b has `lengths[b]` steps. Features: pooled, what the dense layer sees; layers/..., as `Recurrent` lists them.
    """

    embedding_size: int = 256
    vocab_size: int | None = None  # of tokens; None: the inputs are features
    cell: Cell = "lstm"
    hidden_size: int = 256
    num_layers: int = 3
    bidirectional: bool = False
    dropout_rate: float = 0.0  # between layers
    unroll: int = 1  # steps of the scan in one round of the loop
    dtype: Any = jnp.float32  # of the arithmetic
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        inputs: jax.Array | Rows = x
        if self.vocab_size is not None:
            check_tokens(self, x, self.vocab_size, lengths)
            table = nn.Embed(self.vocab_size, self.hidden_size, name="embedding", param_dtype=self.param_dtype)
            inputs = Rows(table.embedding.astype(self.dtype), x)
        layers = Recurrent(
            cell=self.cell,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout_rate=self.dropout_rate,
            unroll=self.unroll,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layers",
        )
        _, state = layers(inputs, layers.init_state(len(x)), lengths, train)
        last = jnp.concatenate([state[name][0] for name in layers.directions(self.num_layers - 1)], axis=-1)
        head = nn.Dense(self.embedding_size, dtype=self.dtype, param_dtype=self.param_dtype, name="head")
        embedding = head(sow(self, "pooled", last)).astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(embedding), axis=-1, keepdims=True) + 1e-12)
        return (embedding / length).astype(self.dtype)
