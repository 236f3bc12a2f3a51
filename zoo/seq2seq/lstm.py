"""`seq2seq_lstm`: one deep LSTM encodes the source, another decodes the target (Sutskever et al. 2014,
arXiv:1409.3215).

The source is read in reverse, so that its first words are close to the target's first; the encoder's final state is all
that the decoder gets. Initialisation is that of `zoo.lstm.layers`, not uniform within 0.08.
"""

from typing import Any

import jax

from zoo.lstm.layers import Recurrent, Rows
from zoo.registry import register
from zoo.seq2seq.model import Seq2Seq, reversed_rows


@register(
    "seq2seq_lstm",
    family="seq2seq",
    input_shape=(50,),
    input_dtype="int32",
    more_inputs={"source": ((50,), "int32")},
    paper="Sutskever et al. 2014, arXiv:1409.3215",
)
class Seq2SeqLSTM(Seq2Seq):
    """Target tokens [B, T] and a source to next-token logits [B, T, vocab_size], by `zoo.sequence`.

    Features: encoder/layer0/... and decoder/layer0/..., as `Recurrent` lists them; hidden, the head's input.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 80_000
    source_vocab_size: int | None = 160_000  # None: vocabulary and embedding are shared with the target
    num_layers: int = 4  # of the encoder and of the decoder

    def build(self) -> None:
        fields: dict[str, Any] = {
            "cell": "lstm",
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "dropout_rate": self.dropout_rate,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        self.encoder, self.decoder = Recurrent(**fields), Recurrent(**fields)

    def read_source(self, source: jax.Array, lengths: jax.Array, train: bool) -> tuple[dict[str, Any], Any]:
        x = self.embed(reversed_rows(source, lengths), train, of_source=True)
        _, decoder = self.encoder(x, self.encoder.init_state(source.shape[0]), lengths, train)
        return {}, decoder

    def empty(self, rows: int) -> dict[str, Any]:
        return self.decoder.init_state(rows)

    def decode(
        self, x: jax.Array | Rows, decoder: Any, memory: dict[str, Any], lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Any]:
        return self.decoder(x, decoder, lengths, train)
