"""Encoder-only, bidirectional Transformers: BERT and its kin, and those whose states embed a sentence.

BERT (Devlin et al. 2019) has learned positions, an embedding of sentence A or B, and normalisation after each residual
sum. `all-MiniLM-L6-v2` (Wang et al. 2020; Reimers and Gurevych 2019) is a BERT with six layers of width 384. RoBERTa
(Liu et al. 2019) has one type of sentences, and positions from 2; DistilBERT (Sanh et al. 2019) has no types, half of
the layers, and a ReLU before its classes. MPNet (Song et al. 2020) has no types either, and adds to attention scores a
bias by distance, which is T5's.

The field `output` chooses the result: the state of every token (`hidden`), the vector of the sentence (`embedding`),
or logits of masked tokens (`tokens`). With `num_classes` it is the logits of the text's classes.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.features import sow
from zoo.ops.attention import Implementation, Mask
from zoo.ops.dense import dot_general
from zoo.ops.positions import distance_buckets
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import take_rows
from zoo.registry import register
from zoo.sequence import check_beside, check_room, check_tokens
from zoo.transformer.layers import (
    ACTIVATIONS,
    PARTITION_RULES,
    Activation,
    Context,
    Remat,
    new_dense,
    new_norm,
    new_stack,
)

Pooling = Literal["mean", "token", "max"]


class Encoder(nn.Module):
    """Tokens [B, T], `lengths[b]` in row b, to the `output`, or to logits [B, num_classes].

    `hidden` is [B, T, hidden_size], `embedding` [B, hidden_size], `tokens` [B, T, vocab_size]. `types`
    int32 [B, T], default 0, are 1 in the second of two sentences. Features: embedded; layers/layer0/hidden,
    layers/layer0/attention/weights [B, N, T, T], ...; pooled [B, hidden_size], of the first token (not with `tokens`).

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 30522
    num_classes: int | None = None  # classes, from the pooled first token
    output: Literal["hidden", "embedding", "tokens"] = "hidden"  # the result without classes
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    max_length: int = 512  # the most tokens of an input
    num_types: int | None = 2  # None: no embedding of sentence A or B
    first_position: int = 0  # the number of the first token's position (RoBERTa: 2)
    num_buckets: int | None = None  # of distances, each with a bias of scores (MPNet); half of them for later keys
    pooling: Pooling = "mean"  # of states to an embedding; "token" is the first one
    unit: bool = True  # embeddings have length 1
    activation: Activation = "gelu"
    pooler_activation: Literal["tanh", "relu"] = "tanh"
    norm_epsilon: float = 1e-12
    dropout_rate: float = 0.1  # of the embedding, of each layer's output, and before the classes
    scan_layers: bool = False  # compile one layer for any depth
    remat: Remat = "none"  # what the backward pass recomputes
    attention: Implementation | None = None  # default: by platform and shape
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another number of classes
    embeddings = ("embedding", "types", "positions", "embedding_norm")
    partition_rules = PARTITION_RULES

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        lengths: jax.Array | None = None,
        train: bool = False,
        types: jax.Array | None = None,
    ) -> jax.Array:
        check_tokens(self, tokens, self.vocab_size, lengths)
        check_beside(self, "types", types, tokens, self.num_types)
        steps = tokens.shape[1]
        check_room(self, steps)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        table = self.table("embedding", self.vocab_size)
        positions = self.table("positions", self.first_position + self.max_length)
        x = take_rows(table, tokens) + positions[self.first_position :][:steps]
        if self.num_types is not None:
            kinds = self.table("types", self.num_types)
            x = x + (kinds[0] if types is None else jnp.take(kinds, types, axis=0, mode="clip"))
        x = sow(self, "embedded", dropout(self.new_norm("embedding_norm")(x)))
        stack = new_stack(self, dense=self.dense, norm=self.new_norm, norms="sum")
        x, _ = stack(name="layers")(x, Context(Mask(lengths=lengths), bias=self.distance_bias(steps), train=train))
        if self.output == "tokens" and self.num_classes is None:
            return self.token_logits(x, table)
        act = {"tanh": nn.tanh, "relu": nn.relu}[self.pooler_activation]
        pooled = sow(self, "pooled", act(self.dense(self.hidden_size, name="pooler")(x[:, 0])))
        if self.num_classes is not None:
            return self.dense(self.num_classes, name="head")(dropout(pooled))
        return x if self.output == "hidden" else embedding_of(x, lengths, self.pooling, self.unit)

    def distance_bias(self, steps: int) -> jax.Array | None:
        """The bias of scores [1, N, T, T] by the distance of query and key."""
        if self.num_buckets is None:
            return None
        init = nn.initializers.normal(0.02)
        by_bucket = self.param("distance_bias", init, (self.num_buckets, self.num_heads), self.param_dtype)
        places = jnp.arange(steps)
        buckets = distance_buckets(places - places[:, None], self.num_buckets, 128, both_ways=True)
        return take_rows(by_bucket, buckets[None]).transpose(0, 3, 1, 2)

    def token_logits(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """Logits [B, T, vocab_size] of the token at each position; the kernel is the embedding."""
        x = ACTIVATIONS[self.activation](self.dense(self.hidden_size, name="told")(x))
        bias = self.param("told_bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype)
        return dot_general(self.new_norm("told_norm")(x), table.T, (((2,), (0,)), ((), ()))) + bias.astype(self.dtype)

    def table(self, name: str, rows: int) -> jax.Array:
        init = nn.initializers.normal(0.02)
        return self.param(name, init, (rows, self.hidden_size), self.param_dtype).astype(self.dtype)

    @property
    def dense(self) -> Any:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return functools.partial(new_dense, std=0.02, residual_std=0.02, use_bias=True, **dtypes)

    @property
    def new_norm(self) -> Any:
        fields: dict[str, Any] = {"norm": "layer", "epsilon": self.norm_epsilon, "use_bias": True}
        return functools.partial(new_norm, **fields, dtype=self.dtype, param_dtype=self.param_dtype)


def embedding_of(x: jax.Array, lengths: jax.Array | None, pooling: Pooling = "mean", unit: bool = True) -> jax.Array:
    """The mean or maximum of states [B, T, D] over each row's tokens, or the first state, [B, D] in float32 or more, of
    length 1 if `unit`; zeros for an empty row."""
    steps = x.shape[1]
    lengths = jnp.full(x.shape[:1], steps) if lengths is None else lengths
    present = (jnp.arange(steps) < lengths[:, None])[..., None]
    wide = x.astype(at_least_float32(x))
    if pooling == "mean":
        found = jnp.sum(wide, axis=1, where=present) / jnp.maximum(lengths, 1)[:, None]
    elif pooling == "max":
        found = jnp.max(wide, axis=1, where=present, initial=-jnp.inf)
    else:
        found = wide[:, 0]
    found = jnp.where(lengths[:, None] > 0, found, 0)
    return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12) if unit else found


BERT: dict[str, dict[str, Any]] = {
    "bert_base": {},
    "bert_large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_size": 4096},
}
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "num_types": 1, "first_position": 2, "norm_epsilon": 1e-5}
MPNET: dict[str, Any] = {**ROBERTA, "vocab_size": 30527, "num_types": None, "num_buckets": 32}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta_base": ("Liu et al. 2019, arXiv:1907.11692", ROBERTA),
    "roberta_large": ("Liu et al. 2019, arXiv:1907.11692", {**ROBERTA, **BERT["bert_large"]}),
    "xlm_roberta_base": ("Conneau et al. 2020, arXiv:1911.02116", {**ROBERTA, "vocab_size": 250002}),
    "mpnet_base": ("Song et al. 2020, arXiv:2004.09297", MPNET),
    "distilbert_base": (
        "Sanh et al. 2019, arXiv:1910.01108",
        {"num_layers": 6, "num_types": None, "pooler_activation": "relu"},
    ),
}
MINILM = {"hidden_size": 384, "num_heads": 12, "mlp_size": 1536, "output": "embedding"}
EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mpnet_embedding": ("Song et al. 2020, arXiv:2004.09297", {**MPNET, "output": "embedding"}),
    "minilm_l6": ("Wang et al. 2020, arXiv:2002.10957", {**MINILM, "num_layers": 6}),
    "minilm_l12": ("Wang et al. 2020, arXiv:2002.10957", MINILM),
    "bge_small": ("Xiao et al. 2023, arXiv:2309.07597", {**MINILM, "pooling": "token"}),
    "bge_base": ("Xiao et al. 2023, arXiv:2309.07597", {"output": "embedding", "pooling": "token"}),
    "bge_large": (
        "Xiao et al. 2023, arXiv:2309.07597",
        {**BERT["bert_large"], "output": "embedding", "pooling": "token"},
    ),
    "e5_small": ("Wang et al. 2022, arXiv:2212.03533", MINILM),
    "e5_base": ("Wang et al. 2022, arXiv:2212.03533", {"output": "embedding"}),
}


def _register(name: str, paper: str, row: dict[str, Any]) -> None:
    add = register(name, family="transformer", input_shape=(128,), input_dtype="int32", paper=paper)
    add(functools.partial(Encoder, **row))


for _name, _row in BERT.items():
    _register(_name, "Devlin et al. 2019, arXiv:1810.04805", _row)
for _name, (_paper, _row) in {**OTHERS, **EMBEDDINGS}.items():
    _register(_name, _paper, _row)
