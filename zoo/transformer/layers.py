"""Parts of every Transformer here: self-attention with a cache, cross-attention, the feed-forward layer, the block, and
the stack of blocks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo import partition
from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.attention import Implementation, Mask, attention, attention_weights
from zoo.ops.dense import dot_general
from zoo.ops.gelu import gelu
from zoo.ops.positions import Rotary, rotate
from zoo.ops.precision import at_least_float32
from zoo.partition import STACKED, TENSOR, Rules

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "swiglu", "geglu"]
Norm = Literal["layer", "rms", "rms_offset"]  # the last one multiplies by 1 + scale
Norms = Literal["before", "after", "both", "sum"]  # of a layer's input, its output, both; of the residual sum
Remat = Literal["none", "dots", "full"]
Cache = dict[str, jax.Array]  # key and value [B, S, K, D]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016, section 2
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,  # of the gate, like geglu; Shazeer 2020
    "geglu": functools.partial(jax.nn.gelu, approximate=True),
}
GATED = ("swiglu", "geglu")
PARTITION_RULES: Rules = (
    # Of two products in a row the first is split by its outputs, heads or features, the second by its inputs.
    ("*/query/kernel", (None, TENSOR)),
    ("*/key/kernel", (None, TENSOR)),
    ("*/value/kernel", (None, TENSOR)),
    ("*/out/kernel", (TENSOR, None)),
    ("*/gate/kernel", (None, TENSOR)),
    ("*/up/kernel", (None, TENSOR)),
    ("*/down/kernel", (TENSOR, None)),
    ("*/query/bias", (TENSOR,)),
    ("*/key/bias", (TENSOR,)),
    ("*/value/bias", (TENSOR,)),
    ("*/gate/bias", (TENSOR,)),
    ("*/up/bias", (TENSOR,)),
    ("*embedding", (TENSOR, None)),  # [vocab_size, hidden_size], a tied head's kernel too
    ("*/head/kernel", (None, TENSOR)),
)
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class NewDense(Protocol):
    """Makes a dense layer; `residual` ones write to the residual stream, and some models initialise them smaller."""

    def __call__(self, features: int, name: str, residual: bool = False) -> nn.Module: ...


def new_dense(
    features: int,
    name: str,
    residual: bool = False,
    *,
    std: float,
    residual_std: float,
    use_bias: bool,
    dtype: Any,
    param_dtype: Any,
) -> nn.Dense:
    """A dense layer whose kernel starts normal with standard deviation `std`, or `residual_std`."""
    init = nn.initializers.normal(residual_std if residual else std)
    return nn.Dense(features, use_bias, dtype, param_dtype, kernel_init=init, dot_general=dot_general, name=name)


def new_norm(name: str, *, norm: Norm, epsilon: float, use_bias: bool, dtype: Any, param_dtype: Any) -> nn.Module:
    """Layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang and Sennrich 2019); statistics in float32 or
    more."""
    fields: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "param_dtype": param_dtype, "name": name}
    if norm == "layer":
        return nn.LayerNorm(use_bias=use_bias, **fields)
    return nn.RMSNorm(**fields) if norm == "rms" else OffsetRMSNorm(**fields)


class OffsetRMSNorm(nn.Module):
    """RMS normalisation times 1 + scale, with scale 0 at first (Gemma Team 2024), in float32 or more."""

    epsilon: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        wide = x.astype(at_least_float32(x))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (1 + scale.astype(wide.dtype))).astype(self.dtype)


class LayerScale(nn.Module):
    """x [..., C] times a scale per channel, `first` before training (Touvron et al. 2021, CaiT, section 2)."""

    first: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(self.first)
        return x * self.param("scale", init, x.shape[-1:], self.param_dtype).astype(x.dtype)


class Context(NamedTuple):
    """What all blocks of a pass share."""

    mask: Mask  # of self-attention; with `positions` where there is a cache
    rotary: Rotary | None = None
    bias: jax.Array | None = None  # of self-attention's scores [1 or B, N, T, S]
    source_lengths: jax.Array | None = None  # [B], of the source of cross-attention
    train: bool = False


class Attention(nn.Module):
    """Self-attention of x [B, T, width], or attention to a source whose keys and values are given.

    With a cache, new keys and values are written at the mask's positions, and the whole cache is read. Features:
    weights [B, N, T, S].
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    implementation: Implementation | None
    dense: NewDense
    qk_norm: Callable[..., nn.Module] | None = None  # norm of each head's queries and keys (Qwen 3)
    qk_norm_whole: bool = False  # that of all heads together (OLMo 2)
    scale: float | None = None  # of scores; default: 1 / sqrt(head_dim)
    soft_cap: float | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: Cache | None = None, source: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        query, mask, bias = self.heads("query", x, self.num_heads), context.mask, context.bias
        if source is None:
            key, value = self.heads("key", x, self.num_kv_heads), self.heads("value", x, self.num_kv_heads)
        else:
            key, value, mask, bias = source["key"], source["value"], Mask(lengths=context.source_lengths), None
        if self.qk_norm is not None:
            query, key = self.normalised("query_norm", query), self.normalised("key_norm", key)
        if context.rotary is not None and source is None:
            query, key = rotate(query, context.rotary), rotate(key, context.rotary)
        if cache is not None:
            cache = {"key": written(cache["key"], key, mask), "value": written(cache["value"], value, mask)}
            key, value = cache["key"], cache["value"]
        options: dict[str, Any] = {"bias": bias, "scale": self.scale, "soft_cap": self.soft_cap}
        if self.is_mutable_collection("features") and not self.is_initializing():
            sow(self, "weights", attention_weights(query, key, mask, **options))
        options |= {"implementation": self.implementation, "finite_padding": cache is not None or source is not None}
        out = attention(query, key, value, mask, **options)
        out = out.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return self.dense(x.shape[-1], name="out", residual=True)(out), cache

    def heads(self, name: str, x: jax.Array, heads: int) -> jax.Array:
        return self.dense(heads * self.head_dim, name=name)(x).reshape(*x.shape[:2], heads, self.head_dim)

    def normalised(self, name: str, x: jax.Array) -> jax.Array:
        assert self.qk_norm is not None
        norm = self.qk_norm(name=name)
        return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape) if self.qk_norm_whole else norm(x)


def written(cache: jax.Array, new: jax.Array, mask: Mask) -> jax.Array:
    """The cache [B, S, K, D] with `new` [B, T, K, D] at the mask's positions [B, T]; positions beyond its end are
    dropped."""
    rows = jnp.arange(cache.shape[0])[:, None]
    return cache.at[rows, mask.positions].set(new.astype(cache.dtype), mode="drop", unique_indices=True)


class FeedForward(nn.Module):
    """x [B, T, width] to the same shape over `mlp_size` hidden features, gated if the activation is."""

    mlp_size: int
    activation: Activation
    dense: NewDense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        hidden = self.dense(self.mlp_size, name="up")(x)
        gate = self.dense(self.mlp_size, name="gate")(x) if self.activation in GATED else None
        hidden = act(hidden) if gate is None else act(gate) * hidden
        return self.dense(x.shape[-1], name="down", residual=True)(hidden)


class Block(nn.Module):
    """Self-attention, cross-attention if there is a source, feed-forward: each is added to the residual stream [B, T,
    width].

    `norms` says what is normalised: the input of each layer (`before`, Xiong et al. 2020), its output, both, or the
    residual `sum` (Vaswani et al. 2017). `parallel` layers read the same input (Black et al. 2022, section 2.1). With a
    `layer_scale` each layer's output is multiplied by a scale per channel. Features: hidden, the output;
    attention/weights, cross/weights.
    """

    attention: Callable[..., Attention]
    mlp_size: int
    activation: Activation
    dense: NewDense
    norm: Callable[..., nn.Module]
    norms: Norms = "before"
    parallel: bool = False
    layer_scale: Callable[..., nn.Module] | None = None
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: Cache | None = None, source: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        def out(x: jax.Array, norm: str, layer: Callable[[jax.Array], jax.Array]) -> jax.Array:
            """The layer's output for the residual stream x."""
            if self.norms in ("before", "both"):
                x = self.norm(name=norm)(x)
            x = layer(x)
            if self.norms in ("after", "both"):
                x = self.norm(name=f"{norm}_after")(x)
            if self.layer_scale is not None:
                x = self.layer_scale(name=f"{norm}_scale")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not context.train)(x)
            if self.drop_path_rate:
                x = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2), deterministic=not context.train)(x)
            return x

        def add(x: jax.Array, norm: str, layer: Callable[[jax.Array], jax.Array]) -> jax.Array:
            added = x + out(x, norm, layer)
            return partition.lying(self.norm(name=norm)(added) if self.norms == "sum" else added, "rows", "context")

        def attend(x: jax.Array) -> jax.Array:
            nonlocal cache
            out, cache = self.attention(name="attention")(x, context, cache)
            return out

        mlp = FeedForward(self.mlp_size, self.activation, self.dense, name="mlp")
        x = partition.lying(x, "rows", "context")
        if self.parallel:
            x = partition.lying(x + out(x, "norm1", attend) + out(x, "norm2", mlp), "rows", "context")
            return sow(self, "hidden", x), cache
        x = add(x, "norm1", attend)
        if source is not None:
            x = add(x, "norm_cross", lambda x: self.attention(name="cross")(x, context, None, source)[0])
        return sow(self, "hidden", add(x, "norm2", mlp)), cache


class Stack(nn.Module):
    """A sequence of blocks over x [B, T, width]; the returned caches have the names of the features.

    With `scan` one block is compiled and run over parameters [num_layers, ...], so that compile time does not grow with
    depth; a state is still read layer by layer. `remat` recomputes in the backward pass everything inside a block
    (`full`), or everything but the products with weights (`dots`). Of several contexts layer i gets number i modulo
    their number; `scan` needs a single one. Features: layer0/..., ...
    """

    block: Callable[..., Block]
    num_layers: int
    scan: bool = False
    remat: Remat = "none"
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, *contexts: Context, state: Any = None, source: Any = None
    ) -> tuple[jax.Array, dict[str, Cache]]:
        names = [f"layer{i}" for i in range(self.num_layers)]
        if self.scan:
            if len(contexts) > 1:
                raise ZooError("scan_layers needs equal layers: their windows or rotations differ")
            if self.drop_path_rate:
                raise ZooError("scan_layers needs equal layers: drop_path_rate grows with depth")
            return self.scanned(x, contexts[0], names, state, source)

        def runner(context: Context) -> Callable[..., tuple[jax.Array, Any]]:
            def run(block: Block, x: jax.Array, cache: Any, memory: Any) -> tuple[jax.Array, Any]:
                return block(x, context, cache, memory)

            if self.remat == "none" or state is not None:
                return run
            return nn.checkpoint(run, policy=POLICIES[self.remat])  # type: ignore[return-value]

        runs, caches = [runner(context) for context in contexts], {}
        for i, name in enumerate(names):
            cache, memory = (None if of is None else of[name] for of in (state, source))
            block = self.block(name=name, **self.dropped(i))
            x, caches[name] = runs[i % len(runs)](block, x, cache, memory)
        return x, caches

    def dropped(self, number: int) -> dict[str, float]:
        """The share of examples for which a layer's outputs are dropped, growing with depth (Huang et al. 2016)."""
        if not self.drop_path_rate:
            return {}
        return {"drop_path_rate": self.drop_path_rate * number / max(self.num_layers - 1, 1)}

    def scanned(
        self, x: jax.Array, context: Context, names: list[str], state: Any, source: Any
    ) -> tuple[jax.Array, dict[str, Cache]]:
        block = self.block(parent=None)

        def init(key: jax.Array) -> Any:
            keys = jax.random.split(key, self.num_layers)
            plain = context._replace(train=False, bias=None)  # with a cache the bias has another shape
            memory = None if source is None else source[names[0]]
            return jax.vmap(lambda key: block.init(key, x, plain, None, memory)["params"])(keys)

        params = self.param(STACKED, init)
        seen = self.is_mutable_collection("features") and not self.is_initializing()
        keys = None
        if context.train and block.dropout_rate:
            keys = jax.random.split(self.make_rng("dropout"), self.num_layers)
        memories = None if source is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(source.get, names))

        def run(x: jax.Array, item: Any, cache: Any = None) -> tuple[jax.Array, tuple[Any, Any]]:
            params, key, memory = item
            rngs = None if key is None else {"dropout": key}
            mutable: Any = ["features"] if seen else []
            args = (x, context, cache, memory)
            (x, cache), changed = block.apply(
                {"params": partition.gathered(params, PARTITION_RULES)}, *args, rngs=rngs, mutable=mutable
            )
            return x, (cache, changed.get("features"))

        items, caches = (params, keys, memories), {}
        if state is None:
            body = run if self.remat == "none" else jax.checkpoint(run, policy=POLICIES[self.remat])  # type: ignore
            x, (_, features) = lax.scan(body, x, items)
            found = [jax.tree.map(lambda leaf, i=i: leaf[i], features) for i in range(self.num_layers)]
        else:
            found = []
            for i, name in enumerate(names):
                x, (caches[name], features) = run(x, jax.tree.map(lambda leaf, i=i: leaf[i], items), state[name])
                found.append(features)
        if seen:
            for name, features in zip(names, found, strict=True):
                self.put_variable("features", name, features)
        return x, caches


def new_stack(
    model: Any,
    *,
    dense: NewDense,
    norm: Callable[..., nn.Module],
    num_kv_heads: int | None = None,
    norms: Norms = "before",
    parallel: bool = False,
    layer_scale: Callable[..., nn.Module] | None = None,
    drop_path_rate: float = 0.0,
    **attention: Any,
) -> Callable[..., Stack]:
    """The stack that a model's fields describe, still unnamed; `attention` are further fields of its attention."""
    of_attention = functools.partial(
        Attention,
        num_heads=model.num_heads,
        num_kv_heads=num_kv_heads or model.num_heads,
        head_dim=head_dim_of(model),
        implementation=model.attention,
        dense=dense,
        **attention,
    )
    block = functools.partial(
        Block,
        attention=of_attention,
        mlp_size=model.mlp_size or 4 * model.hidden_size,
        activation=model.activation,
        dense=dense,
        norm=norm,
        norms=norms,
        parallel=parallel,
        layer_scale=layer_scale,
        dropout_rate=model.dropout_rate,
    )
    return functools.partial(
        Stack,
        block=block,
        num_layers=model.num_layers,
        scan=model.scan_layers,
        remat=model.remat,
        drop_path_rate=drop_path_rate,
    )


def head_dim_of(model: Any) -> int:
    """The width of a model's heads; ZooError if it has no field for it and num_heads does not divide hidden_size."""
    given = getattr(model, "head_dim", None)
    if given is None and model.hidden_size % model.num_heads:
        raise ZooError(f"hidden_size {model.hidden_size} must be a multiple of num_heads {model.num_heads}")
    return given or model.hidden_size // model.num_heads


def unstacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of scanned stacks as separate layers, layer0, layer1, ...: the form of files."""
    plain: dict[str, Any] = {}
    for name, value in params.items():
        if name == STACKED:
            depth = len(jax.tree.leaves(value)[0])
            plain |= {f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], value) for i in range(depth)}
        else:
            plain[name] = unstacked(value) if isinstance(value, Mapping) else value
    return plain


def unscanned(model: Any, variables: Any) -> tuple[Any, Any]:
    """A model and its variables with separate layers, so that a step reads each layer's parameters in place."""
    if not getattr(model, "scan_layers", False):
        return model, variables
    return model.clone(scan_layers=False), {**variables, "params": unstacked(variables["params"])}


def stacked(params: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstacked`, where `like` has scanned stacks."""
    if STACKED in like:
        layers = [params[f"layer{i}"] for i in range(len(params))]
        return {STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    return {
        name: stacked(value, like[name]) if isinstance(value, Mapping) and name in like else value
        for name, value in params.items()
    }
