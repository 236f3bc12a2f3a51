"""Recurrent language models: `lstm_lm`, `gru_lm`, `rnn_lm`.

An embedding, layers of one cell, a head over the vocabulary: the character models of Karpathy, Johnson and Li 2015
(arXiv:1506.02078), 64 to 512 wide and 1 to 3 deep, with an embedding instead of one-hot inputs; and the word models of
Zaremba et al. 2014 (arXiv:1409.2329), medium and large, with dropout on the embedding too.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows
from zoo.ops.recurrence import Cell, take_rows
from zoo.registry import register
from zoo.sequence import check_state, check_tokens, position_after


class RecurrentLM(nn.Module):
    """Tokens [B, T] to next-token logits [B, T, vocab_size], by the protocol of `zoo.sequence`.

    Features: hidden, the head's input; layers/..., as `Recurrent` lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    cell: Cell = "lstm"
    vocab_size: int = 128
    hidden_size: int = 512
    num_layers: int = 2
    embedding_size: int | None = None  # default: hidden_size
    dropout_rate: float = 0.0  # between layers and before the head
    input_dropout_rate: float = 0.0  # of the embedding
    tied: bool = False  # the head's kernel is the embedding
    forget_bias: float = 1.0  # initial bias of an LSTM's forget gates
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another vocabulary
    embeddings = ("embedding",)
    recurrent = True  # training carries the state, whose size is fixed, from batch to batch

    def new_layers(self, **fields: Any) -> Recurrent:
        return Recurrent(
            cell=self.cell,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout_rate=self.dropout_rate,
            forget_bias=self.forget_bias,
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
        width = self.embedding_size or self.hidden_size
        if self.tied and width != self.hidden_size:
            raise ZooError(f"a tied head needs embedding_size {width} to be hidden_size {self.hidden_size}")
        embedding = nn.Embed(self.vocab_size, width, self.dtype, self.param_dtype, name="embedding")
        table = embedding.embedding.astype(self.dtype)
        x: jax.Array | Rows = Rows(table, tokens)
        if train and self.input_dropout_rate:
            x = nn.Dropout(self.input_dropout_rate, deterministic=False)(take_rows(table, tokens))
        old = self.init_state(tokens.shape[0]) if state is None else state
        hidden, layers = self.new_layers(name="layers")(x, old["layers"], lengths, train)
        hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(sow(self, "hidden", hidden))
        if self.tied:
            bias = self.param("head_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)
            logits = hidden @ table.T + bias.astype(self.dtype)
        else:
            logits = nn.Dense(self.vocab_size, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(hidden)
        if state is None:
            return logits
        return logits, {"layers": layers, "position": position_after(state, tokens, lengths)}


_PAPER = "Karpathy, Johnson and Li 2015, arXiv:1506.02078"
_ZAREMBA = "Zaremba et al. 2014, arXiv:1409.2329"


def _register(name: str, paper: str, **fields: Any) -> None:
    add = register(name, family="lstm", input_shape=(50,), input_dtype="int32", paper=paper)
    add(functools.partial(RecurrentLM, **fields))


for _cell in ("lstm", "gru", "rnn"):
    _register(f"{_cell}_lm", _PAPER, cell=_cell)
    for _layers in (1, 2, 3):
        for _size in (64, 128, 256, 512):
            _register(f"{_cell}_lm_{_layers}x{_size}", _PAPER, cell=_cell, num_layers=_layers, hidden_size=_size)

_word: dict[str, Any] = {"vocab_size": 10_000, "num_layers": 2, "forget_bias": 0.0}
_register("lstm_lm_medium", _ZAREMBA, **_word, hidden_size=650, dropout_rate=0.5, input_dropout_rate=0.5)
_register("lstm_lm_large", _ZAREMBA, **_word, hidden_size=1500, dropout_rate=0.65, input_dropout_rate=0.65)
