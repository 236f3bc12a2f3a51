"""Attention of queries to keys: multi-head, grouped-query, multi-query; causal, padded, windowed, packed and cross.

softmax(q k' / sqrt(D)) v of Vaswani et al. 2017, as one pure function with several implementations, each tested against
`attention_reference`:

- `xla`: the whole T x S matrix of scores, on any platform.
- `blocked`: one block of it at a time, see `zoo.ops.blocked_attention`.
- `cudnn`: NVIDIA's, through `jax.nn.dot_product_attention`.
- `pallas`: the splash attention kernels that come with JAX, on a TPU.

`choose` selects one by platform and shape. Visibility is given by numbers (`causal`, `window`, `lengths`, `positions`,
`segments`), so that an implementation can skip hidden blocks; `xla` also takes it as a matrix.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.sharding import PartitionSpec

from zoo import partition
from zoo.errors import ZooError
from zoo.ops.attention_scores import Mask, by_head, by_time, hidden_keys, scaled_scores, unnormalised, weighted_sums
from zoo.ops.blocked_attention import Arrays, blocked
from zoo.ops.forward_mode import in_forward_mode
from zoo.ops.precision import at_least_float32

Implementation = Literal["xla", "blocked", "cudnn", "pallas"]

BLOCKED_FROM = 256  # number of keys from which `blocked` is chosen where there is no kernel
LANES = 128  # a TPU kernel's lengths are multiples of this


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | jax.Array = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: Implementation | None = None,
    finite_padding: bool = False,
) -> jax.Array:
    """query [B, T, N, D], key [B, S, K, D] and value [B, S, K, V] to [B, T, N, V], in the query's dtype; softmax in
    float32, of float64 in float64.

    N is a multiple of K: query head n reads key head n // (N / K). `bias` [1 or B, 1 or N, 1 or T, 1 or S] is added to
    the scores q k' * `scale` (default 1 / sqrt(D)); a boolean one is False where the query does not see the key, and
    may be given as `mask`. `soft_cap` c replaces a score by c tanh(score / c) (Gemma 2). A query that sees no key gets
    zeros. Padding may hold anything, NaN too: keys and values that `lengths` or the bias hide from every query, and
    queries whose results are not used. With `finite_padding` it holds numbers, and nothing is spent on that. ZooError
    for shapes that do not match, and for an implementation that does not support the request.
    """
    heads, width = query.shape[2:]
    rows, queries, heads, width = query.shape
    keys = key.shape[1]
    if key.shape[:3] != value.shape[:3] or key.shape[0] != rows or key.shape[3] != width or heads % key.shape[2]:
        raise ZooError(f"attention of {list(query.shape)} to keys {list(key.shape)} and values {list(value.shape)}")
    mask, bias = given(mask, bias, (rows, heads, queries, keys))
    if 0 in (*query.shape, *value.shape):
        return jnp.zeros((rows, queries, heads, value.shape[3]), query.dtype)
    scale = 1 / math.sqrt(width) if scale is None else scale
    settings: dict[str, Any] = {"scale": scale, "soft_cap": soft_cap, "implementation": implementation}
    run = functools.partial(_attention, **settings, finite_padding=finite_padding)
    return _on_mesh(run, query, key, value, mask, bias)


def given(mask: Mask | jax.Array, bias: jax.Array | None, shape: tuple[int, ...]) -> tuple[Mask, jax.Array | None]:
    """The mask, and the bias with a boolean mask in it; ZooError if they do not fit scores [B, N, T, S]."""
    for name, array in (("mask", None if isinstance(mask, Mask) else mask), ("bias", bias)):
        if array is None:
            continue
        if array.ndim != 4 or any(size not in (1, full) for size, full in zip(array.shape, shape, strict=True)):
            raise ZooError(f"attention {name} {list(array.shape)} does not broadcast to the scores {list(shape)}")
        if name == "mask" and array.dtype != bool:
            raise ZooError(f"an attention mask is a Mask or boolean, not {array.dtype}; numbers to add are the bias")
    if isinstance(mask, Mask):
        return mask, bias
    if bias is None:
        return Mask(), mask
    return Mask(), mask & bias if bias.dtype == bool else jnp.where(mask, bias, -jnp.inf)


def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    *,
    scale: float,
    soft_cap: float | None,
    implementation: Implementation | None,
    finite_padding: bool,
) -> jax.Array:
    """`attention` on one device, by the given or the chosen implementation."""
    _, queries, _, width = query.shape
    same = value.shape[3] == width
    chosen: Implementation = "xla"  # the only one with a bias
    if bias is None or implementation is not None:
        platform = jax.default_backend() if same else "any"  # the kernels take one width
        choice = choose(platform, queries, key.shape[1], width, query.dtype, mask, soft_cap is None)
        chosen = implementation or choice
    hidden = None if finite_padding else hidden_keys(mask.lengths, bias, key.shape[1])
    if hidden is not None:  # a weight of 0 does not remove NaN from a product
        key, value = (jnp.where(hidden[..., None, None], 0, x) for x in (key, value))
    if chosen == "blocked" and in_forward_mode():
        chosen = "xla"
    if chosen == "blocked" and bias is None:
        arrays = Arrays.of(mask, queries)
        return blocked(mask.causal, mask.window, scale, soft_cap, query, key, value, arrays)
    if chosen == "xla":
        return _dense(query, key, value, mask, bias, scale, soft_cap, hidden is not None)
    plain = bias is None and same and mask.positions is None
    if chosen == "cudnn" and plain and soft_cap is None and mask.segments is None:
        return _cudnn(query, key, value, mask, scale)
    if chosen == "pallas" and plain:
        return splash(query, key, value, mask, scale, soft_cap)
    refused = "bias" if bias is not None else "such mask" if same else f"values of width {value.shape[3]}"
    raise ZooError(f"attention {chosen!r} takes no {refused}; take 'xla'")


def _on_mesh(
    run: Any, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, bias: jax.Array | None
) -> jax.Array:
    """`run`, or on a mesh that shards the sequence or the heads (`zoo.partition`), `run` on each device's queries and
    heads with the keys of the whole sequence."""
    sequence, heads = partition.axes_of("context", query.shape[1]), partition.axes_of("tensor", key.shape[2])
    if sequence is None and heads is None:
        return run(query, key, value, mask, bias)
    rows = partition.axes_of("rows", query.shape[0])
    if sequence and mask.positions is None and (mask.causal or mask.window is not None):
        mask = mask._replace(positions=jnp.arange(query.shape[1])[None])

    def spec(x: jax.Array | None, *axes: Any) -> Any:
        return None if x is None else PartitionSpec(rows if x.shape[0] == query.shape[0] else None, *axes)

    by_query, by_key = spec(query, sequence, heads), spec(key, None, heads)
    of_segments = None if mask.segments is None else (spec(query, sequence), spec(key))
    of_mask = spec(mask.lengths), of_segments, spec(mask.positions, sequence)
    of_bias = None
    if bias is not None:
        of_bias = spec(
            bias, *(None if n == 1 else axes for n, axes in zip(bias.shape[1:], (heads, sequence), strict=False))
        )
    specs = by_query, by_key, by_key, of_mask, of_bias

    def own(query: Any, key: Any, value: Any, of_mask: Any, bias: Any) -> jax.Array:
        return run(query, key, value, Mask(mask.causal, mask.window, *of_mask), bias)

    arrays = query, key, value, (mask.lengths, mask.segments, mask.positions), bias
    return partition.by_device(own, specs, by_query)(*arrays)


def choose(platform: str, queries: int, keys: int, width: int, dtype: Any, mask: Mask, plain: bool) -> Implementation:
    """The implementation for a platform and shapes, where there is no bias. `plain`: without a soft cap."""
    in_order = mask.positions is None
    if platform == "tpu" and in_order and queries == keys and queries % LANES == 0 and width % 64 == 0:
        return "pallas"
    halves = dtype in (jnp.float16, jnp.bfloat16) and width % 8 == 0 and width <= 128
    if platform == "gpu" and in_order and halves and plain and queries > 1 and mask.segments is None:
        return "cudnn"
    long = not is_symbolic_dim(keys) and keys >= BLOCKED_FROM
    return "blocked" if long and queries > 1 and plain else "xla"


def attention_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | jax.Array = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """The textbook form: a key head for every query head, the whole matrix, `jax.nn.softmax`."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (x.astype(at_least_float32(x)) for x in (query, key, value))
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    mask, bias = given(mask, bias, shape)
    seen = mask.visible(query.shape[1], key.shape[1])
    visible = jnp.ones(shape, bool) if seen is None else jnp.broadcast_to(seen[:, None], shape)
    if bias is not None:
        visible &= bias if bias.dtype == bool else ~jnp.isneginf(bias)
    used = jnp.any(visible, axis=(1, 2))[..., None, None]
    key, value = jnp.where(used, key, 0), jnp.where(used, value, 0)
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None and bias.dtype != bool:
        scores = scores + jnp.where(jnp.isneginf(bias), 0, bias)
    some = jnp.any(visible, axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(visible | ~some, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnd->btnd", jnp.where(some, weights, 0), value)


def _dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    soft_cap: float | None,
    padded: bool,
) -> jax.Array:
    """`xla`. Where there is padding, a query with NaN gets NaN, which does not reach the gradients of keys."""
    wrong = None
    if padded:
        wrong = ~jnp.all(jnp.isfinite(query), axis=-1, keepdims=True)  # [B, T, N, 1]
        query = jnp.where(wrong, 0, query)
    weights, total = _unnormalised(query, key, mask, bias, scale, soft_cap)
    out = by_time(weighted_sums(weights, value.transpose(0, 2, 1, 3)) / total).astype(query.dtype)
    if wrong is None:
        return out
    some = by_time(jnp.sum(weights, axis=-1, keepdims=True)) > 0  # a sum that XLA has already
    return jnp.where(wrong & some, jnp.nan, out)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | jax.Array = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """The weights alone, [B, N, T, S] in float32 or more, for inspection."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask, bias = given(mask, bias, (query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
    weights, total = _unnormalised(query, key, mask, bias, scale, soft_cap)
    return (weights / total).reshape(query.shape[0], query.shape[2], query.shape[1], key.shape[1])


def _unnormalised(
    query: jax.Array, key: jax.Array, mask: Mask, bias: jax.Array | None, scale: float, soft_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """`unnormalised` weights [B, K, G, T, S] from the scores, and their sums."""
    heads = key.shape[2]
    scores = scaled_scores(by_head(query, heads), key.transpose(0, 2, 1, 3), scale, soft_cap)
    visible = mask.visible(query.shape[1], key.shape[1])
    visible = None if visible is None else visible[:, None, None]
    if bias is not None:
        groups = (1, 1) if bias.shape[1] == 1 else (heads, bias.shape[1] // heads)
        bias = bias.reshape(bias.shape[0], *groups, *bias.shape[2:])
        if bias.dtype == bool:
            visible = bias if visible is None else visible & bias
        else:
            scores = scores + bias.astype(scores.dtype)
    return unnormalised(scores, visible)


# External kernels.


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, scale: float) -> jax.Array:
    before, after = (key.shape[1] if side is None else side for side in mask.reach)
    window = None if mask.window is None else (before, after)
    lengths = mask.lengths
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=window,
        query_seq_lengths=None if lengths is None else jnp.full(query.shape[:1], query.shape[1], jnp.int32),
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    scale: float,
    soft_cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention kernel for TPUs; `interpret` runs it on any platform, slowly.

    T and S must be multiples of 128, else ZooError. Keys that `lengths` hides form a segment of their own. On several
    devices it runs under `jax.set_mesh`, each device on its rows of the batch.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    queries, keys, heads = query.shape[1], key.shape[1], key.shape[2]
    if queries % LANES or keys % LANES:
        raise ZooError(f"attention 'pallas' takes lengths that are multiples of {LANES}, not {queries} and {keys}")
    grouped = by_head(query * scale, heads)  # [B, K, G, T, D]
    seen: Any = library.FullMask((queries, keys))
    if mask.window is not None:
        seen = library.LocalMask((queries, keys), mask.reach, 0)
    elif mask.causal:
        seen = library.CausalMask((queries, keys))
    side_q, side_k = (next(side for side in (512, 384, 256, 128) if n % side == 0) for n in (queries, keys))
    sides: dict[str, Any] = {"block_q": side_q, "block_q_dkv": side_q, "block_q_dq": side_q, "block_kv": side_k}
    sides |= dict.fromkeys(("block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), side_k)
    kernel = library.make_splash_mqa(
        library.splash_attention_mask.MultiHeadMask([seen] * grouped.shape[2]),
        block_sizes=library.splash_attention_kernel.BlockSizes(**sides),
        attn_logits_soft_cap=soft_cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = mask.segments
    if mask.lengths is not None:
        present = jnp.arange(keys) < mask.lengths[:, None]
        mine = jnp.zeros(query.shape[:2], jnp.int32) if segments is None else segments[0]
        segments = mine, jnp.where(present, 0 if segments is None else segments[1], -1)
    ids = None if segments is None else library.SegmentIds(*segments)
    rows = PartitionSpec(partition.axes_of("rows", query.shape[0]))  # XLA cannot partition a kernel
    run = partition.by_device(jax.vmap(jax.vmap(kernel, in_axes=(0, 0, 0, None))), rows, rows)
    out = run(grouped, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), ids)
    return by_time(out).astype(query.dtype)
