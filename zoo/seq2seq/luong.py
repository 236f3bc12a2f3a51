"""`seq2seq_lstm_luong`: a deep LSTM whose output looks at the source (Luong et al. 2015, arXiv:1508.04025).

The source is read from its end; what the encoder's top layer held at each place is what the decoder's top layer attends
to, by one of three scores. Context and output make the attentional vector, which the head sees, and which goes into the
first layer with the next word (input feeding). Of the paper's attentions this is the global one. Keys and values do not
depend on the step; without input feeding nothing that is attended to does, and all steps attend at once.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.lstm.layers import Recurrent, Rows, projected
from zoo.ops.recurrence import textbook_cell
from zoo.ops.scan import Times, scan, times
from zoo.registry import register
from zoo.seq2seq.attention import Score, SourceAttention, attend
from zoo.seq2seq.model import Cells, Seq2Seq, kept, present_steps, reversed_rows


@register(
    "seq2seq_lstm_luong",
    family="seq2seq",
    input_shape=(50,),
    input_dtype="int32",
    paper="Luong et al. 2015, arXiv:1508.04025",
)
class Seq2SeqLuong(Seq2Seq):
    """Target tokens [B, T] to logits [B, T, vocab_size] of the next ones, given a source, by `zoo.sequence`.

    Features: encoder/layer0/..., as `Recurrent` lists them, in the order in which the source is read; without input
    feeding, decoder/layer0/...; attention, the weights [B, T, S] over the source; hidden, what the head sees.
    """

    vocab_size: int = 50_000
    source_vocab_size: int | None = 50_000  # None: it shares the target's, and the embedding
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
            unroll=self.unroll,
            **dtypes,
        )
        self.encoder = stack()
        cells = functools.partial(Cells, "lstm", self.hidden_size, self.num_layers, **dtypes)
        self.decoder: Any = cells() if self.input_feeding else stack()
        self.alignment = SourceAttention(self.score, self.hidden_size, self.hidden_size, **dtypes)
        init, shape = nn.initializers.lecun_normal(), (2 * self.hidden_size, self.hidden_size)
        self.combine = self.param("combine", init, shape, self.param_dtype)

    def read_source(self, source: jax.Array, lengths: jax.Array, train: bool) -> tuple[dict[str, Any], Any]:
        x = self.embed(reversed_rows(source, lengths), train, of_source=True)
        encoded, decoder = self.encoder(x, self.encoder.init_state(len(source)), lengths, train)
        if self.input_feeding:
            decoder["fed"] = jnp.zeros((len(source), self.hidden_size), self.dtype)
        return self.alignment.memory(reversed_rows(encoded, lengths)), decoder

    def decode(
        self, x: jax.Array | Rows, decoder: Any, memory: dict[str, Any], lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Any]:
        kernels, shared = self.alignment.weights(memory)
        kernels["combine"] = self.combine.astype(self.dtype)
        if not self.input_feeding:
            hidden, decoder = self.decoder(x, decoder, lengths, train)
            look = functools.partial(combined, functools.partial(times, kernels), shared)
            attentional, weights = jax.vmap(look, in_axes=1, out_axes=1)(hidden)
            sow(self, "attention", weights)
            return attentional.astype(self.dtype), decoder
        x = Rows(x.table, x.tokens.T) if isinstance(x, Rows) else jnp.moveaxis(x, 0, 1)
        width = self.embedding_size
        first, *rest = self.decoder(width + self.hidden_size)
        inputs = projected(x, first.kernel[:width]) + first.bias
        # What comes from below, or was fed, and what the layer held are one vector in one product.
        kernels["layer0"] = jnp.concatenate([first.kernel[width:], first.recurrent_kernel])
        for i, layer in enumerate(rest, 1):
            kernels[f"layer{i}"] = jnp.concatenate([layer.kernel, layer.recurrent_kernel])
        shared["bias"] = [layer.bias for layer in rest]
        masks = None
        if train and self.dropout_rate:
            ones = jnp.ones((*inputs.shape[:2], self.hidden_size), self.dtype)
            masks = [self.dropout(ones, deterministic=False) for _ in rest]
        items = (inputs, masks, present_steps(len(inputs), lengths))
        decoder, (attentional, weights) = scan(step, self.unroll, kernels, decoder, items, shared)
        sow(self, "attention", jnp.moveaxis(weights, 0, 1))
        return jnp.moveaxis(attentional, 0, 1), decoder


def combined(times: Times, shared: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The attentional vector of a decoder's output [B, H] (equation 5), and the weights [B, S], both float32."""
    context, weights = attend(times, shared, hidden)
    return jnp.tanh(times("combine", jnp.concatenate([context.astype(hidden.dtype), hidden], axis=-1))), weights


def step(times: Times, carry: Any, item: Any, shared: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """A token with input feeding: the states after it, and its attentional vector and weights."""
    inputs, masks, present = item
    below: jax.Array = carry["fed"]
    new: dict[str, Any] = {}
    for i in range(1 + len(shared["bias"])):
        name = f"layer{i}"
        if i:
            below, inputs = below if masks is None else below * masks[i - 1], shared["bias"][i - 1]
        product = times(name, jnp.concatenate([below, carry[name][0]], axis=-1))
        new[name], _ = textbook_cell("lstm", inputs.astype(jnp.float32), product, carry[name])
        below = new[name][0].astype(below.dtype)
    new["fed"], weights = combined(times, shared, below)
    carry = kept(present, new, carry)
    return carry, (carry["fed"], weights)
