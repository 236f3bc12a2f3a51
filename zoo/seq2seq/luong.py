"""`seq2seq_lstm_luong`: a deep LSTM whose output attends to the source (Luong et al. 2015, arXiv:1508.04025).

The source is read in reverse; the decoder's top layer attends to the encoder's top-layer outputs by one of three
scores. Context and output form the attentional vector, which is the head's input and enters the first layer with the
next token (input feeding). This is the paper's global attention. Without input feeding, queries do not depend on
earlier attention, and all steps attend at once.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows, projected
from zoo.ops.recurrence import textbook_cell
from zoo.registry import register
from zoo.seq2seq.attention import Score, SourceAttention, attend, product
from zoo.seq2seq.model import Cells, Seq2Seq, kept, present_steps, reversed_rows


@register(
    "seq2seq_lstm_luong",
    family="seq2seq",
    input_shape=(50,),
    input_dtype="int32",
    more_inputs={"source": ((50,), "int32")},
    paper="Luong et al. 2015, arXiv:1508.04025",
)
class Seq2SeqLuong(Seq2Seq):
    """Target tokens [B, T] and a source to next-token logits [B, T, vocab_size], by `zoo.sequence`.

    Features: encoder/layer0/..., as `Recurrent` lists them, in reading order; without input feeding,
    decoder/layer0/...; attention, the weights [B, T, S] over the source; hidden, the head's input.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 50_000
    source_vocab_size: int | None = 50_000  # None: vocabulary and embedding are shared with the target
    num_layers: int = 4  # of the encoder and of the decoder
    dropout_rate: float = 0.2  # of the embeddings, between layers and before the head
    score: Score = "general"
    input_feeding: bool = True

    def build(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stack = functools.partial(
            Recurrent,
            cell="lstm",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout_rate=self.dropout_rate,
            **dtypes,
        )
        self.encoder = stack()
        cells = functools.partial(Cells, "lstm", self.hidden_size, self.num_layers, **dtypes)
        self.decoder: Any = cells() if self.input_feeding else stack()
        self.alignment = SourceAttention(self.score, *[self.hidden_size] * 3, **dtypes)
        init, shape = nn.initializers.lecun_normal(), (2 * self.hidden_size, self.hidden_size)
        self.combine = self.param("combine", init, shape, self.param_dtype)

    def read_source(self, source: jax.Array, lengths: jax.Array, train: bool) -> tuple[dict[str, Any], Any]:
        x = self.embed(reversed_rows(source, lengths), train, of_source=True)
        encoded, decoder = self.encoder(x, self.encoder.init_state(source.shape[0]), lengths, train)
        if self.input_feeding:
            decoder["fed"] = self.empty(source.shape[0])["fed"]
        return self.alignment.memory(reversed_rows(encoded, lengths)), decoder

    def empty(self, rows: int) -> dict[str, Any]:
        layers = self.encoder.init_state(rows)
        return {**layers, "fed": jnp.zeros((rows, self.hidden_size), self.dtype)} if self.input_feeding else layers

    def empty_memory(self, rows: int, steps: int) -> dict[str, jax.Array]:
        return self.alignment.empty(rows, steps)

    def decode(
        self, x: jax.Array | Rows, decoder: Any, memory: dict[str, Any], lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Any]:
        weights = self.alignment.weights(memory)
        combine = self.combine.astype(self.dtype)

        def combined(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The attentional vector of the top layer's output [B, H] (equation 5), and the attention [B, S]."""
            context, attention = attend(weights, product(hidden, weights["query"]) if "query" in weights else hidden)
            both = jnp.concatenate([context.astype(self.dtype), hidden], axis=-1)
            return jnp.tanh(product(both, combine)).astype(self.dtype), attention

        if not self.input_feeding:
            hidden, decoder = self.decoder(x, decoder, lengths, train)
            attentional, attention = jax.vmap(combined, in_axes=1, out_axes=1)(hidden)
            sow(self, "attention", attention)
            return attentional, decoder

        x = Rows(x.table, x.tokens.T) if isinstance(x, Rows) else jnp.moveaxis(x, 0, 1)
        width = self.embedding_size
        first, *rest = self.decoder(width + self.hidden_size)
        # The input from below (or fed) and the layer's state are one vector in one product.
        kernels = [jnp.concatenate([first.kernel[width:], first.recurrent_kernel])]
        kernels += [jnp.concatenate([layer.kernel, layer.recurrent_kernel]) for layer in rest]

        def step(carry: Any, item: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            inputs, masks, present = item
            below: jax.Array = carry["fed"]
            new: dict[str, Any] = {}
            for i, kernel in enumerate(kernels):
                name = f"layer{i}"
                if i:
                    below, inputs = below if masks is None else below * masks[i - 1], rest[i - 1].bias
                gates = product(jnp.concatenate([below, carry[name][0]], axis=-1), kernel)
                new[name], _ = textbook_cell("lstm", inputs.astype(gates.dtype), gates, carry[name])
                below = new[name][0].astype(self.dtype)
            new["fed"], attention = combined(below)
            carry = kept(present, new, carry)
            return carry, (carry["fed"], attention)

        inputs, masks = projected(x, first.kernel[:width]) + first.bias, None
        if train and self.dropout_rate:
            ones = jnp.ones((*inputs.shape[:2], self.hidden_size), self.dtype)
            masks = [self.dropout(ones, deterministic=False) for _ in rest]
        items = (inputs, masks, present_steps(inputs.shape[0], lengths))
        decoder, (attentional, attention) = jax.lax.scan(step, decoder, items)
        sow(self, "attention", jnp.moveaxis(attention, 0, 1))
        return jnp.moveaxis(attentional, 0, 1), decoder
