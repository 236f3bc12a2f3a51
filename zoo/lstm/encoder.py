"""`lstm_encoder`, `lstm_sentence_encoder`: one unit vector per sequence, of a speaker's voice or a sentence.

The stack of Wan et al. 2018 (GE2E, arXiv:1710.10467): the last layer's state at the last step, a dense layer,
normalised to length one. The widths are those in common use for speakers, 3 layers of 256, instead of the paper's 768
with projections. Resemblyzer's encoder is `activation="relu"`, a ReLU before the norm.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import Cell
from zoo.registry import register
from zoo.sequence import check_series, check_tokens

_PAPER = "Wan et al. 2018, arXiv:1710.10467"


@register("lstm_encoder", family="lstm", input_shape=(160, 40), paper=_PAPER)
class RecurrentEncoder(nn.Module):
    """Features [B, T, F], `lengths[b]` steps in row b, to embeddings [B, embedding_size] of length one.

    Features: pooled, the dense layer's input; layers/..., as `Recurrent` lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    embedding_size: int = 256
    cell: Cell = "lstm"
    hidden_size: int = 256
    num_layers: int = 3
    bidirectional: bool = False
    dropout_rate: float = 0.0  # between layers
    activation: Literal["relu"] | None = None  # of the dense layer
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        check_series(self, x, lengths)
        return self.embed(x, lengths, train)

    @nn.compact
    def embed(self, x: jax.Array | Rows, lengths: jax.Array | None, train: bool) -> jax.Array:
        """Embeddings of features, or of rows of a table."""
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
        rows = (x.tokens if isinstance(x, Rows) else x).shape[0]
        _, state = layers(x, layers.init_state(rows), lengths, train)
        last = jnp.concatenate([state[name][0] for name in layers.directions(self.num_layers - 1)], axis=-1)
        head = nn.Dense(self.embedding_size, dtype=self.dtype, param_dtype=self.param_dtype, name="head")
        embedding = head(sow(self, "pooled", last)).astype(at_least_float32(self.dtype))
        if self.activation == "relu":
            embedding = nn.relu(embedding)
        length = jnp.sqrt(jnp.sum(jnp.square(embedding), axis=-1, keepdims=True) + 1e-12)
        return (embedding / length).astype(self.dtype)


@register("lstm_sentence_encoder", family="lstm", input_shape=(64,), input_dtype="int32", paper=_PAPER)
class SentenceEncoder(RecurrentEncoder):
    """Tokens [B, T], `lengths[b]` in row b, to embeddings [B, embedding_size] of length one.

    Features: pooled, the dense layer's input; layers/..., as `Recurrent` lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 10_000

    embeddings = ("words",)

    def setup(self) -> None:
        self.words = nn.Embed(self.vocab_size, self.hidden_size, param_dtype=self.param_dtype)

    def __call__(self, tokens: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        check_tokens(self, tokens, self.vocab_size, lengths)
        return self.embed(Rows(self.words.embedding.astype(self.dtype), tokens), lengths, train)
