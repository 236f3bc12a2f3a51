"""T5 (Raffel et al. 2020, arXiv:1910.10683), an encoder-decoder trained on every task as text to text.

RMS normalisation before each layer, no biases, unscaled attention scores, and instead of positions a relative position
bias: one number per bucket of distances and head, shared by the layers of a half. The logits of a tied head are divided
by sqrt(hidden_size). T5 1.1 (Shazeer 2020) has a gated feed-forward layer and an untied head: `geglu` and `tied=False`.

A target starts with token 0, the padding token. Dropout is on the embeddings and on each layer's output; the paper also
has it inside layers.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.ops.dense import dot_general
from zoo.ops.positions import distance_buckets
from zoo.ops.recurrence import take_rows
from zoo.transformer.encoder_decoder import SourceToTarget, halves, new_head, register_rows


def new_dense(
    features: int, name: str, residual: bool = False, *, head_dim: int, dtype: Any, param_dtype: Any
) -> nn.Dense:
    """A dense layer without bias; queries start smaller by the factor that scales scores elsewhere."""
    init = nn.initializers.variance_scaling(1 / head_dim if name == "query" else 1.0, "fan_in", "normal")
    return nn.Dense(features, False, dtype, param_dtype, kernel_init=init, dot_general=dot_general, name=name)


class T5(SourceToTarget):
    __doc__ = SourceToTarget.__doc__

    vocab_size: int = 32_128
    num_buckets: int = 32  # of distances; in the encoder half of them are for later keys
    max_distance: int = 128  # larger distances share the last bucket

    def setup(self) -> None:
        heads, head_dim = self.sizes
        dense = functools.partial(new_dense, head_dim=head_dim, dtype=self.dtype, param_dtype=self.param_dtype)
        self.encoder, self.source, self.decoder = halves(self, dense, "rms", norm_first=True, scale=1.0)
        init = nn.initializers.normal(1.0)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.hidden_size), self.param_dtype)
        init, shape = nn.initializers.normal(self.hidden_size**-0.5), (self.num_buckets, heads)
        self.encoder_bias = self.param("encoder_distance_bias", init, shape, self.param_dtype)
        self.decoder_bias = self.param("decoder_distance_bias", init, shape, self.param_dtype)
        if not self.tied:
            self.head_layer = new_head(self)

    def embed(self, tokens: jax.Array, places: jax.Array, of_source: bool) -> jax.Array:
        return take_rows(self.embedding.astype(self.dtype), tokens)

    def bias(self, places: jax.Array, keys: int, of_source: bool) -> jax.Array:
        ahead = jnp.arange(keys) - places[..., None]
        buckets = distance_buckets(ahead, self.num_buckets, self.max_distance, both_ways=of_source)
        by_bucket = self.encoder_bias if of_source else self.decoder_bias
        return take_rows(by_bucket, buckets).transpose(0, 3, 1, 2)

    def logits(self, x: jax.Array) -> jax.Array:
        return super().logits(x / math.sqrt(self.hidden_size) if self.tied else x)


_RAFFEL, _CHUNG = "Raffel et al. 2020, arXiv:1910.10683", "Chung et al. 2022, arXiv:2210.11416"
_SHAZEER = "Shazeer 2020, arXiv:2002.05202"
_BASE: dict[str, Any] = {"hidden_size": 768, "num_layers": 12, "num_heads": 12}
_GATED: dict[str, Any] = {"activation": "geglu", "tied": False, "head_dim": 64}
_GATED_SMALL = {**_GATED, "num_layers": 8, "num_heads": 6, "mlp_size": 1024}
_GATED_BASE = {**_GATED, **_BASE, "mlp_size": 2048}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5_small": (_RAFFEL, {}),
    "t5_base": (_RAFFEL, {**_BASE, "mlp_size": 3072}),
    "t5_v1_1_small": (_SHAZEER, _GATED_SMALL),
    "t5_v1_1_base": (_SHAZEER, _GATED_BASE),
    "flan_t5_small": (_CHUNG, _GATED_SMALL),
    "flan_t5_base": (_CHUNG, _GATED_BASE),
}
register_rows(T5, {name: (paper, {"dropout_rate": 0.1, **row}) for name, (paper, row) in ROWS.items()})
