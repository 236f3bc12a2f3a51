"""Models written with flax.linen's own layers, as Flax's examples use them; with our weights they compute the same.

Modules and parameters have our names, with the parts of a path joined by `_`. Recurrent ones have the names of Flax's
cells.
"""

import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.problems import Problem
from zoo.ops.positions import sinusoids
from zoo.ops.recurrence import Cell

GELU: dict[str, Any] = {"gelu": functools.partial(nn.gelu, approximate=False), "gelu_tanh": nn.gelu}


class CNN(nn.Module):
    """Convolutions and max-pooling, two dense layers."""

    num_classes: int
    widths: tuple[int, ...]
    hidden_size: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, width in enumerate(self.widths, start=1):
            x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, name="fc1")(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x)


class ResNet(nn.Module):
    """Residual blocks; bottlenecks have their stride in the 3x3 convolution."""

    stage_sizes: tuple[int, ...]
    block: str
    stem: str
    shortcut: str
    width: int
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def conv(width: int, size: int, strides: int, name: str) -> nn.Conv:
            kernel, pad = (size, size), size // 2
            return nn.Conv(width, kernel, strides, padding=pad, use_bias=False, dtype=self.dtype, name=name)

        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        size, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = nn.relu(norm(name="bn1")(conv(self.width, size, strides, "conv1")(x)))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                name, width, strides = f"layer{stage + 1}_{i}", self.width * 2**stage, 2 if stage and not i else 1
                sizes = (3, 3) if self.block == "basic" else (1, 3, 1)
                widths = (width, width) if self.block == "basic" else (width, width, 4 * width)
                striding, y = 0 if self.block == "basic" else 1, x
                for j, (size, out) in enumerate(zip(sizes, widths, strict=True)):
                    y = conv(out, size, strides if j == striding else 1, f"{name}_conv{j + 1}")(y)
                    y = norm(name=f"{name}_bn{j + 1}")(y)
                    y = nn.relu(y) if j + 1 < len(sizes) else y
                if y.shape != x.shape and self.shortcut == "projection":
                    x = conv(widths[-1], 1, strides, f"{name}_downsample_0")(x)
                    x = norm(name=f"{name}_downsample_1")(x)
                elif y.shape != x.shape:
                    half = (y.shape[-1] - x.shape[-1]) // 2
                    x = jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (half, half)))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x.mean((1, 2)))


class GPT(nn.Module):
    """GPT-2, also for packed documents; positions are counted per row."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_length: int
    activation: str
    use_bias: bool
    norm_epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False, segments: jax.Array | None = None) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, self.norm_epsilon, dtype=self.dtype, use_bias=self.use_bias)
        dense = functools.partial(nn.Dense, dtype=self.dtype, use_bias=self.use_bias)
        attention = functools.partial(
            nn.MultiHeadDotProductAttention, self.num_heads, self.dtype, use_bias=self.use_bias
        )
        embedding = nn.Embed(self.vocab_size, self.hidden_size, self.dtype, name="embedding")
        positions = nn.Embed(self.max_length, self.hidden_size, self.dtype, name="positions")
        x = embedding(tokens) + positions(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        if segments is not None:
            mask = nn.combine_masks(mask, nn.make_attention_mask(segments, segments, jnp.equal))
        for i in range(self.num_layers):
            name = f"layers_layer{i}"
            x += attention(name=f"{name}_attention")(norm(name=f"{name}_norm1")(x), mask=mask)
            y = dense(4 * self.hidden_size, name=f"{name}_mlp_up")(norm(name=f"{name}_norm2")(x))
            x += dense(self.hidden_size, name=f"{name}_mlp_down")(GELU[self.activation](y))
        return embedding.attend(norm(name="norm")(x))


class EncoderDecoder(nn.Module):
    """The Transformer of Vaswani et al. 2017, pre-norm or post-norm, with a shared embedding or one per side."""

    vocab_size: int
    source_vocab_size: int | None
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    norm_epsilon: float
    norm_first: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, source: jax.Array, source_lengths: jax.Array, train: bool = False
    ) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, self.norm_epsilon, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        attention = functools.partial(nn.MultiHeadDotProductAttention, self.num_heads, self.dtype)
        embedding = nn.Embed(self.vocab_size, self.hidden_size, self.dtype, name="embedding")
        source_embedding = embedding
        if self.source_vocab_size is not None:
            source_embedding = nn.Embed(self.source_vocab_size, self.hidden_size, self.dtype, name="source_embedding")
        there = jnp.arange(source.shape[1]) < source_lengths[:, None]

        def embed(table: nn.Embed, tokens: jax.Array) -> jax.Array:
            places = sinusoids(jnp.arange(tokens.shape[1])[None], self.hidden_size)
            return table(tokens) * math.sqrt(self.hidden_size) + places.astype(self.dtype)

        def add(x: jax.Array, name: str, layer: Any) -> jax.Array:
            scaled = norm(name=name)
            return x + layer(scaled(x)) if self.norm_first else scaled(x + layer(x))

        def half(name: str, x: jax.Array, mask: jax.Array, memory: jax.Array | None = None) -> jax.Array:
            for i in range(self.num_layers):
                own = f"{name}_layers_layer{i}"
                x = add(x, f"{own}_norm1", lambda x, own=own: attention(name=f"{own}_attention")(x, mask=mask))
                if memory is not None:
                    cross = functools.partial(attention(name=f"{own}_cross"), mask=there[:, None, None])
                    x = add(x, f"{own}_norm_cross", lambda x, cross=cross: cross(x, memory))
                up, down = dense(self.mlp_size, name=f"{own}_mlp_up"), dense(x.shape[-1], name=f"{own}_mlp_down")
                x = add(x, f"{own}_norm2", lambda x, up=up, down=down: down(nn.relu(up(x))))
            return norm(name=f"{name}_norm")(x) if self.norm_first else x

        memory = half("encoder", embed(source_embedding, source), there[:, None, None])
        return embedding.attend(half("decoder", embed(embedding, tokens), nn.make_causal_mask(tokens), memory))


class Decoder(nn.Module):
    """One step of a GRU with attention to the source: the state [B, H] after a word, and its context."""

    hidden_size: int
    attention_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, state: jax.Array, word: jax.Array, values: jax.Array, keys: jax.Array, visible: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        query = dense(self.attention_size, name="query")(state)
        scores = dense(1, name="vector")(nn.tanh(query[:, None] + keys))[..., 0]
        context = jnp.einsum("bs,bsd->bd", nn.softmax(scores, where=visible), values)
        cell = nn.GRUCell(self.hidden_size, dtype=self.dtype, name="cell")
        state, _ = cell(state, jnp.concatenate([word, context], -1))
        return state, (state, context)


class GRUAttention(nn.Module):
    """A bidirectional GRU encoder, the decoder with attention, and the maxout layer of Bahdanau et al. 2015."""

    vocab_size: int
    source_vocab_size: int
    embedding_size: int
    hidden_size: int
    attention_size: int
    maxout_size: int
    dropout_rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        source: jax.Array | None = None,
        source_lengths: jax.Array | None = None,
    ) -> jax.Array:
        source = tokens if source is None else source
        lengths = jnp.full(len(source), source.shape[1]) if source_lengths is None else source_lengths
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        embed = functools.partial(nn.Embed, features=self.embedding_size, dtype=self.dtype)
        forward, backward = (
            nn.RNN(nn.GRUCell(self.hidden_size, dtype=self.dtype, name=name), return_carry=True)
            for name in ("forward", "backward")
        )
        x = dropout()(embed(self.source_vocab_size, name="source_embedding")(source))
        (_, last), values = nn.Bidirectional(
            forward, backward, return_carry=True, merge_fn=lambda a, b: jnp.concatenate([a, b], -1)
        )(x, seq_lengths=lengths)
        keys = nn.Dense(self.attention_size, use_bias=False, dtype=self.dtype, name="key")(values)
        state = nn.tanh(nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype, name="begin")(last))
        words = dropout()(embed(self.vocab_size, name="embedding")(tokens))
        over_words: dict[str, Any] = {"in_axes": (1, *[nn.broadcast] * 3), "out_axes": 1}
        steps = nn.scan(Decoder, variable_broadcast="params", split_rngs={"params": False}, **over_words)
        visible = jnp.arange(source.shape[1]) < lengths[:, None]
        decoder = steps(self.hidden_size, self.attention_size, self.dtype, name="decoder")
        _, (hidden, context) = decoder(state, words, values, keys, visible)
        pieces = nn.Dense(2 * self.maxout_size, dtype=self.dtype, name="maxout")(
            jnp.concatenate([hidden, words, context], -1)
        )
        maxed = pieces.reshape(*pieces.shape[:2], self.maxout_size, 2).max(-1)
        return nn.Dense(self.vocab_size, dtype=self.dtype, name="head")(dropout()(maxed))


class LinenLM(nn.Module):
    """A recurrent language model."""

    cell: Cell
    vocab_size: int
    hidden_size: int
    num_layers: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        cells = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}
        x = nn.Embed(self.vocab_size, self.hidden_size, self.dtype, name="embedding")(tokens)
        for i in range(self.num_layers):
            x = nn.RNN(cells[self.cell](self.hidden_size, dtype=self.dtype, name=f"layer{i}"))(x)
        return nn.Dense(self.vocab_size, dtype=self.dtype, name="head")(x)


# By our class: the model of Flax's layers, with fields of the same names, and the values that our fields must have.
MODELS: dict[str, tuple[type[nn.Module], dict[str, tuple]]] = {
    "SimpleCNN": (CNN, {}),
    "ResNet": (ResNet, {}),
    "Decoder": (
        GPT,
        {
            "positions": ("learned",),
            "norm": ("layer",),
            "activation": tuple(GELU),
            "tied": (True,),
            "num_kv_heads": (None,),
            "mlp_size": (None,),
            "window": (None,),
            "soft_cap": (None,),
            "qk_norm": (False,),
        },
    ),
    "EncoderDecoder": (EncoderDecoder, {"activation": ("relu",), "tied": (True,), "head_dim": (None,)}),
    "Seq2SeqGRUAttention": (GRUAttention, {"num_layers": (1,)}),
    "RecurrentLM": (LinenLM, {"tied": (False,), "embedding_size": (None,)}),
}


def flax_model(model: Any) -> nn.Module | None:
    """The model of Flax's layers that computes the same as our `model`, or None."""
    kind, needed = MODELS.get(type(model).__name__, (None, {}))
    if kind is GRUAttention and model.source_vocab_size is None:
        return None
    if kind is None or any(getattr(model, field) not in values for field, values in needed.items()):
        return None
    names = [name for name in kind.__dataclass_fields__ if name not in ("parent", "name")]
    return kind(**{name: getattr(model, name) for name in names})


def carried(problem: Problem, module: nn.Module) -> dict[str, Any]:
    """Our variables with the names and shapes of `module`."""
    params = problem.variables["params"]
    if isinstance(module, GRUAttention):
        return {"params": attentive_params(params)}
    if isinstance(module, LinenLM):
        cells = {name: linen_cell(module.cell, layer) for name, layer in params["layers"].items()}
        return {"params": {"embedding": params["embedding"], "head": params["head"], **cells}}
    found = {_joined(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(problem.variables)}

    def own(path: Any, leaf: Any) -> jax.Array:
        name = re.sub(r"decoder_layers_(layer\d+)_cross_(key|value)", r"source_\1_\2", _joined(path))
        return jnp.array(found[name if name in found else name.removesuffix("_embedding")]).reshape(leaf.shape)

    args, kwargs = problem.inputs.arguments(problem.batch)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return dict(jax.tree_util.tree_map_with_path(own, shapes))


def _joined(path: Any) -> str:
    return "_".join(key.key for key in path)


def attentive_params(params: Any) -> dict[str, Any]:
    """Our weights with the names and shapes of `GRUAttention`."""
    encoder, alignment = params["encoder"], params["alignment"]
    decoder = {"cell": linen_cell("gru", params["decoder"]["layer0"])}
    decoder |= {"query": {"kernel": alignment["query_kernel"]}, "vector": {"kernel": alignment["vector"][:, None]}}
    same = {name: params[name] for name in ("embedding", "source_embedding", "begin", "maxout", "head")}
    ways = {"forward": linen_cell("gru", encoder["layer0"]), "backward": linen_cell("gru", encoder["layer0_reverse"])}
    return {**same, **ways, "decoder": decoder, "key": alignment["key"]}


def linen_cell(cell: Cell, layer: Any) -> dict[str, Any]:
    """The weights of a recurrent layer with the names of flax.linen's cell, gate by gate."""
    gates = {"lstm": "ifgo", "gru": "rzn", "rnn": "i"}[cell]
    kernels, recurrents, biases = (
        jnp.split(layer[name], len(gates), axis=-1) for name in ("kernel", "recurrent_kernel", "bias")
    )
    found: dict[str, Any] = {}
    for gate, kernel, recurrent_kernel, bias in zip(gates, kernels, recurrents, biases, strict=True):
        if cell == "lstm":
            found |= {f"i{gate}": {"kernel": kernel}, f"h{gate}": {"kernel": recurrent_kernel, "bias": bias}}
        elif cell == "gru":
            both = {f"i{gate}": {"kernel": kernel, "bias": bias}, f"h{gate}": {"kernel": recurrent_kernel}}
            if gate == "n":  # the candidate has two biases, one of them inside the reset gate's product
                both["hn"]["bias"], both["in"]["bias"] = bias, layer["candidate_bias"]
            found |= both
        else:
            found |= {"i": {"kernel": kernel, "bias": bias}, "h": {"kernel": recurrent_kernel}}
    return found
