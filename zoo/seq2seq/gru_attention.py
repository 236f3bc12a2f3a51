"""`seq2seq_gru_attention`: a decoder with attention before each token (Bahdanau et al. 2015, arXiv:1409.0473).

A bidirectional GRU encodes the source. The decoder's state attends to it (additive attention), and the weighted mean,
the context, enters the GRU with the last token. A maxout layer (Goodfellow et al. 2013) of state, embedding and context
is the head's input. Differences from the paper's appendix: the reset gate comes after the product (`zoo.lstm.layers`),
cells and maxout have biases, and maxout reads the new state, as in equation 4, not the one before.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows, projected
from zoo.ops.recurrence import take_rows, textbook_cell, zero_state
from zoo.registry import register
from zoo.seq2seq.attention import SourceAttention, attend, product
from zoo.seq2seq.model import Cells, Seq2Seq, kept, present_steps


@register(
    "seq2seq_gru_attention",
    family="seq2seq",
    input_shape=(50,),
    input_dtype="int32",
    more_inputs={"source": ((50,), "int32")},
    paper="Bahdanau et al. 2015, arXiv:1409.0473",
)
class Seq2SeqGRUAttention(Seq2Seq):
    """Target tokens [B, T] and a source to next-token logits [B, T, vocab_size], by `zoo.sequence`.

    Features: encoder/layer0/..., encoder/layer0_reverse/..., as `Recurrent` lists them; attention, the weights
    [B, T, S] over the source; hidden, the head's input.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    source_vocab_size: int | None = 30_000  # None: vocabulary and embedding are shared with the target
    embedding_size: int = 620
    num_layers: int = 1  # of the encoder; the decoder has one
    attention_size: int = 1000  # of the additive attention's hidden layer
    maxout_size: int = 500

    def build(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Recurrent(
            cell="gru",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=True,
            dropout_rate=self.dropout_rate,
            **dtypes,
        )
        self.begin = nn.Dense(self.hidden_size, False, **dtypes)
        self.decoder = Cells("gru", self.hidden_size, 1, **dtypes)
        self.alignment = SourceAttention(
            "concat", self.hidden_size, 2 * self.hidden_size, self.attention_size, **dtypes
        )
        self.maxout = nn.Dense(2 * self.maxout_size, **dtypes)

    def read_source(self, source: jax.Array, lengths: jax.Array, train: bool) -> tuple[dict[str, Any], Any]:
        x = self.embed(source, train, of_source=True)
        encoded, state = self.encoder(x, self.encoder.init_state(source.shape[0]), lengths, train)
        (first,) = state[f"layer{self.num_layers - 1}_reverse"]  # the final state of the reverse direction
        return self.alignment.memory(encoded), {"layer0": (jnp.tanh(self.begin(first)),)}

    def empty(self, rows: int) -> dict[str, Any]:
        return {"layer0": zero_state("gru", rows, self.hidden_size, self.dtype)}

    def empty_memory(self, rows: int, steps: int) -> dict[str, jax.Array]:
        return self.alignment.empty(rows, steps)

    def decode(
        self, x: jax.Array | Rows, decoder: Any, memory: dict[str, Any], lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Any]:
        x = Rows(x.table, x.tokens.T) if isinstance(x, Rows) else jnp.moveaxis(x, 0, 1)
        width = self.embedding_size
        (cell,) = self.decoder(width + memory["value"].shape[-1])
        weights = self.alignment.weights(memory)
        # Sliced outside the loop: inside, devices would sum its gradient in every step.
        context_kernel = cell.kernel[width:]
        # One product of the state gives the attention query and the gates.
        state_kernel = jnp.concatenate([weights["query"], cell.recurrent_kernel], axis=1)

        def step(carry: Any, item: Any) -> tuple[Any, tuple[jax.Array, jax.Array, jax.Array]]:
            (inputs, present), state = item, carry["layer0"]
            query, gates = jnp.split(product(state[0], state_kernel), [self.attention_size], axis=1)
            context, attention = attend(weights, query)
            inputs = inputs + product(context, context_kernel)
            new, _ = textbook_cell("gru", inputs, gates + cell.bias.astype(gates.dtype), state)
            carry = kept(present, {"layer0": new}, carry)
            return carry, (carry["layer0"][0], context.astype(self.dtype), attention)

        inputs = projected(x, cell.kernel[:width], cell.candidate_bias)
        items = (inputs, present_steps(inputs.shape[0], lengths))
        decoder, (hidden, context, attention) = jax.lax.scan(step, decoder, items)
        sow(self, "attention", jnp.moveaxis(attention, 0, 1))
        words = take_rows(*x) if isinstance(x, Rows) else x
        pieces = self.maxout(jnp.concatenate([hidden, words, context], axis=-1))
        maxed = jnp.max(pieces.reshape(*pieces.shape[:2], self.maxout_size, 2), axis=-1)
        return jnp.moveaxis(maxed, 0, 1), decoder
