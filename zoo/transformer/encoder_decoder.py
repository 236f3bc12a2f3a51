"""Encoder-decoder Transformers (Vaswani et al. 2017): the source is encoded once, the target is decoded token by token.

`SourceToTarget` has what all of them share: the two stacks, the protocol of `zoo.sequence`, and keys and values of
cross-attention computed once per source. `EncoderDecoder` is the paper's model: sinusoidal positions, ReLU, biases, one
embedding for source, target and head, normalisation after each residual sum; most models today normalise before each
layer (`norm_first`). BART (Lewis et al. 2020) learns its positions and normalises embeddings, Marian's translators
(Junczys-Dowmunt et al. 2018; Tiedemann and Thottingal 2020) have the paper's sinusoids; both have a bias of the head.

Dropout is on the embeddings and on each layer's output, as in the paper, and not on attention weights.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.attention import Implementation, Mask
from zoo.ops.dense import dot_general
from zoo.ops.positions import sinusoids
from zoo.ops.recurrence import take_rows
from zoo.registry import register
from zoo.sequence import (
    cache_size,
    check_begun,
    check_room,
    check_source,
    check_state,
    check_tokens,
    position_after,
    source_size,
)
from zoo.transformer.layers import (
    PARTITION_RULES,
    Activation,
    Cache,
    Context,
    NewDense,
    Norm,
    Remat,
    Stack,
    head_dim_of,
    new_norm,
    new_stack,
)


class Half(nn.Module):
    """The encoder or the decoder: embeddings [B, T, width] through the layers and a final norm, if there is one; with
    `norm_embedded` the embeddings are normalised first.

    Features: embedded; layers/...; normalised, after the final norm.
    """

    stack: Callable[..., Stack]
    norm: Callable[..., nn.Module] | None
    dropout_rate: float
    norm_embedded: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, state: Any = None, source: Any = None) -> tuple[jax.Array, Any]:
        x = x if self.norm_embedded is None else self.norm_embedded(name="embedding_norm")(x)
        x = sow(self, "embedded", nn.Dropout(self.dropout_rate, deterministic=not context.train)(x))
        x, caches = self.stack(name="layers")(x, context, state=state, source=source)
        return (x if self.norm is None else sow(self, "normalised", self.norm(name="norm")(x))), caches


class KeyValue(nn.Module):
    """Keys and values [B, S, N, D] of the encoded source [B, S, width] for one layer's cross-attention."""

    num_heads: int
    head_dim: int
    dense: NewDense

    @nn.compact
    def __call__(self, x: jax.Array) -> Cache:
        shape, width = (*x.shape[:2], self.num_heads, self.head_dim), self.num_heads * self.head_dim
        return {name: self.dense(width, name=name)(x).reshape(shape) for name in ("key", "value")}


class Source(nn.Module):
    """Keys and values for every layer of the decoder: layer0, ..."""

    key_value: Callable[..., KeyValue]
    num_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, Cache]:
        return {f"layer{i}": self.key_value(name=f"layer{i}")(x) for i in range(self.num_layers)}


class SourceToTarget(nn.Module):
    """Target tokens [B, T] and a source to next-token logits [B, T, vocab_size], by `zoo.sequence`.

    Features: encoder/embedded; encoder/layers/layer0/hidden, .../attention/weights [B, N, S, S], ...;
    decoder/layers/layer0/hidden, .../attention/weights [B, N, T, T], .../cross/weights [B, N, T, S]; normalised of each
    half where layers normalise their input. A subclass makes `encoder`, `source` and `decoder` with `halves`,
    `embedding`, and `head_layer` if it is not tied; and defines `embed`.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    vocab_size: int = 37_000
    hidden_size: int = 512
    num_layers: int = 6  # of each half
    num_decoder_layers: int | None = None  # of the decoder, where it has another number
    num_heads: int = 8
    head_dim: int | None = None  # default: hidden_size / num_heads
    mlp_size: int = 2048
    max_length: int = 512  # the most tokens of a source, and of a target
    activation: Activation = "relu"
    norm_epsilon: float = 1e-6
    tied: bool = True  # the head's kernel is the embedding
    dropout_rate: float = 0.0  # of the embeddings and of each layer's output
    scan_layers: bool = False  # compile one layer of each half for any depth
    remat: Remat = "none"  # what the backward pass recomputes
    attention: Implementation | None = None  # default: by platform and shape
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"  # the module that is drawn anew for another vocabulary
    embeddings = ("embedding", "source_embedding")
    partition_rules = PARTITION_RULES

    def embed(self, tokens: jax.Array, places: jax.Array, of_source: bool) -> jax.Array:
        """[B, T, hidden_size] for tokens [B, T] at `places` [B or 1, T]."""
        raise NotImplementedError

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, T, vocab_size] from the decoder's output [B, T, hidden_size]."""
        if not self.tied:
            return self.head_layer(x)
        return dot_general(x, self.embedding.astype(self.dtype).T, (((2,), (0,)), ((), ())))

    def bias(self, places: jax.Array, keys: int, of_source: bool) -> jax.Array | None:
        """A bias of self-attention scores, [B or 1, N, T, keys], for queries at `places` [B or 1, T]."""
        return None

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of heads and width of a head; ZooError if the number does not divide."""
        return self.num_heads, head_dim_of(self)

    @property
    def settled(self) -> dict[str, int]:
        """Derived defaults, filled in."""
        return {"head_dim": self.sizes[1], "num_decoder_layers": self.num_decoder_layers or self.num_layers}

    def encode(self, source: jax.Array, source_lengths: jax.Array | None, max_length: int) -> dict[str, Any]:
        """The state before the first of at most `max_length` target tokens, with the source [B, S] encoded."""
        check_room(self, max_length)
        state = self.empty(source.shape[0], max_length)
        return {**state, "source": self.read(source, source_lengths, train=False)}

    def empty(self, rows: int, max_length: int) -> dict[str, Any]:
        """The state without a source: zeros."""
        return {"layers": self.caches(rows, max_length), "position": jnp.zeros((rows,), jnp.int32)}

    def caches(self, rows: int, steps: int) -> dict[str, Cache]:
        """Keys and values of every layer: zeros."""
        shape = (rows, steps, *self.sizes)
        return {
            f"layer{i}": {name: jnp.zeros(shape, self.dtype) for name in ("key", "value")}
            for i in range(self.settled["num_decoder_layers"])
        }

    def like(self, state: Any, rows: int) -> dict[str, Any]:
        """A state for rows [B] of the same sizes as `state`: zeros."""
        source = {**self.caches(rows, source_size(state)), "lengths": jnp.zeros((rows,), jnp.int32)}
        return {**self.empty(rows, cache_size(state) or 0), "source": source}

    def read(self, source: jax.Array, lengths: jax.Array | None, train: bool) -> dict[str, Any]:
        """The decoder's view of a source: keys and values for each layer, and the lengths."""
        check_source(self, source, lengths)
        rows, steps = source.shape
        check_room(self, steps)
        places = jnp.arange(steps)[None]
        context = Context(Mask(lengths=lengths), bias=self.bias(places, steps, of_source=True), train=train)
        x, _ = self.encoder(self.embed(source, places, of_source=True), context)
        lengths = jnp.full((rows,), steps, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
        return {**self.source(x), "lengths": lengths}

    def __call__(
        self,
        tokens: jax.Array,
        state: Any = None,
        lengths: jax.Array | None = None,
        train: bool = False,
        source: jax.Array | None = None,
        source_lengths: jax.Array | None = None,
    ) -> Any:
        check_tokens(self, tokens, self.vocab_size, lengths)
        steps = keys = tokens.shape[1]
        check_room(self, steps)
        if self.is_initializing() and state is None and source is None:
            source = jnp.zeros_like(tokens)  # parameters do not depend on the source
        check_begun(self, state, source, source_lengths)
        if state is not None:
            check_state(self, state, lambda: self.like(state, tokens.shape[0]))
        places, mask = jnp.arange(steps)[None], Mask(causal=True)
        if state is not None:
            places, keys = state["position"][:, None] + places, state["layers"]["layer0"]["key"].shape[1]
            mask = mask._replace(positions=places)
        memory = state["source"] if source is None else self.read(source, source_lengths, train)
        context = Context(mask, None, self.bias(places, keys, of_source=False), memory["lengths"], train)
        x = self.embed(tokens, places, of_source=False)
        x, layers = self.decoder(x, context, None if state is None else state["layers"], memory)
        logits = self.logits(x)
        if state is None:
            return logits
        return logits, {"layers": layers, "position": position_after(state, tokens, lengths), "source": memory}


def halves(
    model: SourceToTarget,
    dense: NewDense,
    norm: Norm,
    norm_first: bool,
    scale: float | None = None,
    norm_embedded: bool = False,
) -> tuple[Half, Source, Half]:
    """A model's encoder, source and decoder. `scale` multiplies attention scores; default 1 / sqrt(head_dim)."""
    new = functools.partial(
        new_norm, norm=norm, epsilon=model.norm_epsilon, use_bias=True, dtype=model.dtype, param_dtype=model.param_dtype
    )
    stack = new_stack(model, dense=dense, norm=new, norms="before" if norm_first else "sum", scale=scale)
    layers = model.settled["num_decoder_layers"]
    last, first = new if norm_first else None, new if norm_embedded else None
    encoder, decoder = (
        Half(functools.partial(stack, num_layers=depth), last, model.dropout_rate, first)
        for depth in (model.num_layers, layers)
    )
    key_value = functools.partial(KeyValue, *model.sizes, dense)
    return encoder, Source(key_value, layers), decoder


def new_dense(features: int, name: str, residual: bool = False, *, dtype: Any, param_dtype: Any) -> nn.Dense:
    """A dense layer with a bias, initialised as in Glorot and Bengio 2010."""
    init = nn.initializers.glorot_uniform()
    return nn.Dense(features, True, dtype, param_dtype, kernel_init=init, dot_general=dot_general, name=name)


def new_head(model: SourceToTarget) -> nn.Dense:
    """An untied head."""
    settings: dict[str, Any] = {"dot_general": dot_general, "name": model.head}
    return nn.Dense(model.vocab_size, False, model.dtype, model.param_dtype, **settings)


class EncoderDecoder(SourceToTarget):
    __doc__ = SourceToTarget.__doc__

    source_vocab_size: int | None = None  # of a source with a separate embedding; default: shared with the target
    norm_first: bool = False  # normalise each layer's input and each half's output; default: each residual sum
    positions: Literal["sinusoids", "paper", "learned"] = "sinusoids"  # "paper": with the paper's rates
    first_position: int = 0  # the number of the first token's position, where learned (BART: 2)
    norm_embedded: bool = False  # normalise embeddings
    scale_embedding: bool = True  # by sqrt(hidden_size)
    head_bias: bool = False

    def setup(self) -> None:
        if self.hidden_size % 2:
            raise ZooError(f"hidden_size must be even, for sines and cosines, not {self.hidden_size}")
        dense = functools.partial(new_dense, dtype=self.dtype, param_dtype=self.param_dtype)
        parts = halves(self, dense, "layer", self.norm_first, norm_embedded=self.norm_embedded)
        self.encoder, self.source, self.decoder = parts
        init = nn.initializers.normal(self.hidden_size**-0.5)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.hidden_size), self.param_dtype)
        if self.source_vocab_size is not None:
            shape = self.source_vocab_size, self.hidden_size
            self.source_embedding = self.param("source_embedding", init, shape, self.param_dtype)
        if not self.tied:
            self.head_layer = new_head(self)
        if self.positions == "learned":
            shape = self.first_position + self.max_length, self.hidden_size
            self.source_positions = self.param("source_positions", init, shape, self.param_dtype)
            self.target_positions = self.param("target_positions", init, shape, self.param_dtype)
        if self.head_bias:
            self.added = self.param("head_bias", nn.initializers.zeros, (1, self.vocab_size), self.param_dtype)

    def embed(self, tokens: jax.Array, places: jax.Array, of_source: bool) -> jax.Array:
        own = of_source and self.source_vocab_size is not None
        table = self.source_embedding if own else self.embedding
        x = take_rows(table.astype(self.dtype), tokens)
        x = x * math.sqrt(self.hidden_size) if self.scale_embedding else x
        if self.positions != "learned":
            return x + sinusoids(places, self.hidden_size, self.dtype, slowest=self.positions == "sinusoids")
        learned = self.source_positions if of_source else self.target_positions
        return x + jnp.take(learned.astype(self.dtype), self.first_position + places, axis=0, mode="clip")

    def logits(self, x: jax.Array) -> jax.Array:
        logits = super().logits(x)
        return logits + self.added.astype(self.dtype) if self.head_bias else logits


_BART: dict[str, Any] = {
    **{"vocab_size": 50265, "max_length": 1024, "activation": "gelu", "norm_epsilon": 1e-5, "dropout_rate": 0.1},
    **{"positions": "learned", "first_position": 2, "norm_embedded": True, "scale_embedding": False, "head_bias": True},
}
_LARGE: dict[str, Any] = {"hidden_size": 1024, "num_heads": 16, "mlp_size": 4096}
_VASWANI, _LEWIS = "Vaswani et al. 2017, arXiv:1706.03762", "Lewis et al. 2020, arXiv:1910.13461"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer_base": (_VASWANI, {"dropout_rate": 0.1}),
    "transformer_big": (_VASWANI, {**_LARGE, "dropout_rate": 0.3}),
    "bart_base": (_LEWIS, {**_BART, "hidden_size": 768, "num_heads": 12, "mlp_size": 3072}),
    "bart_large": (_LEWIS, {**_BART, **_LARGE, "num_layers": 12}),
    "distilbart_12_6": (
        "Shleifer and Rush 2020, arXiv:2010.13002",
        {**_BART, **_LARGE, "num_layers": 12, "num_decoder_layers": 6},
    ),
    "opus_mt": (
        "Tiedemann and Thottingal 2020, OPUS-MT",
        {
            **{"vocab_size": 58101, "activation": "silu", "norm_epsilon": 1e-5, "dropout_rate": 0.1},
            **{"positions": "paper", "head_bias": True},
        },
    ),
}


def register_rows(kind: type[SourceToTarget], rows: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """Registers models of a class by name, each with its paper and its fields."""
    shape, more = (512,), {"source": ((512,), "int32")}
    for name, (paper, row) in rows.items():
        add = register(
            name, family="transformer", input_shape=shape, input_dtype="int32", more_inputs=more, paper=paper
        )
        add(functools.partial(kind, **row))


register_rows(EncoderDecoder, ROWS)
