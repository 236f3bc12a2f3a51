"""AWD-LSTM, Merity et al. 2018 (arXiv:1708.02182): an LSTM language model with dropout everywhere.

Recurrent kernels lose connections (weight drop), the embedding loses whole words, and every other dropout shares one
mask over all steps. Head and embedding are tied. Of the paper's training, `optimizer.ema` replaces the triggered
average, and the activation penalties (AR, TAR) are missing.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows
from zoo.ops.recurrence import take_rows
from zoo.registry import register
from zoo.sequence import check_state, check_tokens, position_after


@register(
    "awd_lstm", family="lstm", input_shape=(70,), input_dtype="int32", paper="Merity et al. 2018, arXiv:1708.02182"
)
class AwdLstm(nn.Module):
    """Tokens [B, T] to next-token logits [B, T, vocab_size], by the protocol of `zoo.sequence`.

    Features: hidden, the head's input; layers/..., as `Recurrent` lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 10_000
    hidden_size: int = 1150
    num_layers: int = 3
    embedding_size: int = 400  # also the width of the last layer
    embedding_dropout_rate: float = 0.1  # of whole words
    input_dropout_rate: float = 0.4  # of the embedding's features
    dropout_rate: float = 0.25  # between layers
    output_dropout_rate: float = 0.4  # before the head
    weight_dropout_rate: float = 0.5  # of recurrent kernels
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    embeddings = ("embedding",)
    recurrent = True  # training carries the state, whose size is fixed, from batch to batch

    def new_layers(self, **fields: Any) -> Recurrent:
        return Recurrent(
            cell="lstm",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            last_size=self.embedding_size,
            dropout_rate=self.dropout_rate,
            variational=True,
            weight_dropout_rate=self.weight_dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **fields,
        )

    def init_state(self, batch_size: int, max_length: int = 0) -> dict[str, Any]:
        """The state before the first token: zeros, of the same size for any `max_length`."""
        layers = self.new_layers(parent=None).init_state(batch_size)
        return {"layers": layers, "position": jnp.zeros((batch_size,), jnp.int32)}

    @nn.compact
    def __call__(
        self, tokens: jax.Array, state: Any = None, lengths: jax.Array | None = None, train: bool = False
    ) -> Any:
        check_tokens(self, tokens, self.vocab_size, lengths)
        if state is not None:
            check_state(self, state, lambda: self.init_state(tokens.shape[0]))
        init = nn.initializers.uniform(0.2)  # shifted to the paper's -0.1 to 0.1

        def shifted(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
            return init(key, shape, dtype) - 0.1

        table = self.param("embedding", shifted, (self.vocab_size, self.embedding_size), self.param_dtype)
        table = table.astype(self.dtype)
        whole_words = nn.Dropout(self.embedding_dropout_rate, broadcast_dims=(1,), deterministic=not train)
        x: jax.Array | Rows = Rows(whole_words(table), tokens)
        if train:
            locked = nn.Dropout(self.input_dropout_rate, broadcast_dims=(1,), deterministic=False)
            x = locked(take_rows(*x))
        old = self.init_state(tokens.shape[0]) if state is None else state
        hidden, layers = self.new_layers(name="layers")(x, old["layers"], lengths, train)
        dropout = nn.Dropout(self.output_dropout_rate, broadcast_dims=(1,), deterministic=not train)
        hidden = dropout(sow(self, "hidden", hidden))
        bias = self.param("head_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)
        logits = hidden @ table.T + bias.astype(self.dtype)
        if state is None:
            return logits
        return logits, {"layers": layers, "position": position_after(state, tokens, lengths)}
