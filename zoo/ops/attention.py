"""Attention of queries to keys: multi-head, grouped-query, multi-query; causal, padding, window, packing and cross.

softmax(q k' / sqrt(D)) v of Vaswani et al. 2017, as one pure function with several implementations, which the tests
hold to `attention_reference`:

- `xla`: the whole T x S matrix of scores, on any platform.
- `blocked`: the online softmax of Milakov and Gimelshein 2018, block by block, its gradient from the row's logsumexp as
  in FlashAttention-2 (Dao 2023). Memory is linear in T, and blocks that the mask hides are not computed.
- `cudnn`: NVIDIA's, through `jax.nn.dot_product_attention`.
- `pallas`: the splash attention kernels that come with JAX, on a TPU.

`choose` picks one by platform and shape. What a query may see is said by numbers (`causal`, `window`, `lengths`,
`positions`, `segments`), not by a matrix, so that an implementation can skip what is hidden.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.errors import ZooError

Implementation = Literal["xla", "blocked", "cudnn", "pallas"]

BLOCKED_FROM = 256  # keys from which `blocked` is the choice where there is no kernel
LEAST = -1e30  # below any score, and finite
LANES = 128  # what a TPU kernel's lengths are multiples of


class Mask(NamedTuple):
    """What a query sees. A key is seen where all that is given holds.

    `causal`: its position is not beyond the query's. `window`: it is fewer than so many positions before the query
    (and, without `causal`, after it). `lengths` [B]: it is among the row's first so many keys. `segments`: it has the
    query's number, int32 [B, T] and [B, S]. `positions` int32 [B, T] are the queries' places among the keys, where
    those are not 0 to T - 1.
    """

    causal: bool = False
    window: int | None = None
    lengths: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    positions: jax.Array | None = None

    def visible(self, queries: int, keys: int) -> jax.Array | None:
        """bool [B or 1, T, S]; None where every key is seen."""
        places = jnp.arange(queries)[None] if self.positions is None else self.positions
        return self.of_block(places, jnp.arange(keys), None if self.segments is None else self.segments)

    def of_block(
        self, places: jax.Array, keys: jax.Array, segments: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array | None:
        """The same of queries at `places` [B or 1, t] and keys at `keys` [s], with their segments [B, t] and [B, s]."""
        seen = []
        ahead = keys - places[..., None]  # [B, t, s]
        if self.causal:
            seen.append(ahead <= 0)
        if self.window is not None:
            seen.append(ahead > -self.window)
            if not self.causal:
                seen.append(ahead < self.window)
        if self.lengths is not None:
            seen.append(keys < self.lengths[:, None, None])
        if segments is not None:
            seen.append(segments[0][:, :, None] == segments[1][:, None, :])
        return functools.reduce(jnp.logical_and, seen) if seen else None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """query [B, T, N, D], key and value [B, S, K, D] to [B, T, N, D], in the query's dtype; softmax in float32.

    N is a multiple of K: query head n reads key head n // (N / K). `bias` [1 or B, N, T, S] is added to the scores
    q k' * `scale` (default 1 / sqrt(D)); `soft_cap` c takes c tanh(score / c) of them (Gemma 2). A query that sees no
    key gets zeros. ZooError for shapes that do not go together, or an implementation that cannot do what is asked.
    """
    _, queries, heads, width = query.shape
    if key.shape != value.shape or key.shape[0] != len(query) or key.shape[3] != width or heads % key.shape[2]:
        raise ZooError(f"attention of {list(query.shape)} to keys {list(key.shape)} and values {list(value.shape)}")
    scale = 1 / math.sqrt(width) if scale is None else scale
    plain = bias is None and soft_cap is None
    chosen = implementation or choose(jax.default_backend(), queries, key.shape[1], width, query.dtype, mask, plain)
    if chosen == "blocked" and bias is None:
        return _blocked(
            mask.causal, mask.window, scale, soft_cap, query, key, value, _Arrays.of(mask, queries, key.shape[1])
        )
    if chosen == "xla":
        return _dense(query, key, value, mask, bias, scale, soft_cap)
    if chosen == "cudnn" and plain and mask.segments is None and mask.positions is None:
        return _cudnn(query, key, value, mask, scale)
    if chosen == "pallas" and bias is None and mask.positions is None:
        return splash(query, key, value, mask, scale, soft_cap)
    raise ZooError(f"attention {chosen!r} takes no {'bias' if bias is not None else 'such mask'}; take 'xla'")


def choose(platform: str, queries: int, keys: int, width: int, dtype: Any, mask: Mask, plain: bool) -> Implementation:
    """The implementation for a platform and shapes. `plain`: neither bias nor soft cap."""
    in_order = mask.positions is None
    if platform == "tpu" and in_order and queries == keys and queries % LANES == 0 and width % 64 == 0:
        return "pallas"
    halves = dtype in (jnp.float16, jnp.bfloat16) and width % 8 == 0 and width <= 128
    if platform == "gpu" and in_order and halves and plain and queries > 1 and mask.segments is None:
        return "cudnn"
    return "blocked" if queries > 1 and keys >= BLOCKED_FROM and plain else "xla"


def attention_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """The textbook's: every head's own key, the whole matrix, `jax.nn.softmax`."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    visible = mask.visible(query.shape[1], key.shape[1])
    if visible is not None:
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
        weights = jnp.where(visible[:, None], weights, 0)
    else:
        weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bnts,bsnd->btnd", weights, value)


# xla: the whole matrix. Heads lie [B, K, G, T, D], the G query heads of a key head side by side.


def _by_head(query: jax.Array, heads: int) -> jax.Array:
    """[B, T, N, D] to [B, K, G, T, D]."""
    rows, steps, _, width = query.shape
    return query.reshape(rows, steps, heads, -1, width).transpose(0, 2, 3, 1, 4)


def _by_time(x: jax.Array) -> jax.Array:
    """[B, K, G, T, D] to [B, T, N, D]."""
    return x.transpose(0, 3, 1, 2, 4).reshape(len(x), x.shape[3], -1, x.shape[4])


def _scores(query: jax.Array, key: jax.Array, scale: float, soft_cap: float | None) -> jax.Array:
    """Capped scores, float32 [B, K, G, t, s], of [B, K, G, t, D] and [B, K, s, D]."""
    rows = query.reshape(*query.shape[:2], -1, query.shape[-1])  # the G heads are more rows of one product
    contract = (((3,), (3,)), ((0, 1), (0, 1)))
    scores = lax.dot_general(rows, key, contract, preferred_element_type=jnp.float32).reshape(*query.shape[:4], -1)
    scores = scores * scale
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def _times(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, K, G, t, s] times [B, K, s, D], float32 [B, K, G, t, D]."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(value.dtype)
    contract = (((3,), (2,)), ((0, 1), (0, 1)))
    product = lax.dot_general(rows, value, contract, preferred_element_type=jnp.float32)
    return product.reshape(*weights.shape[:4], -1)


def _dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    weights, total = _unnormalised(query, key, mask, bias, scale, soft_cap)
    out = _times(weights, value.transpose(0, 2, 1, 3)) / total
    return _by_time(out).astype(query.dtype)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask = Mask(),  # noqa: B008 - immutable
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """The weights alone, float32 [B, N, T, S], for those who look at them."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights, total = _unnormalised(query, key, mask, bias, scale, soft_cap)
    return (weights / total).reshape(len(query), query.shape[2], query.shape[1], -1)


def _unnormalised(
    query: jax.Array, key: jax.Array, mask: Mask, bias: jax.Array | None, scale: float, soft_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """exp(score - the row's largest) [B, K, G, T, S], 0 where hidden; and its sums over keys, 1 for none."""
    heads = key.shape[2]
    scores = _scores(_by_head(query, heads), key.transpose(0, 2, 1, 3), scale, soft_cap)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(len(bias), heads, -1, *bias.shape[2:])
    visible = mask.visible(query.shape[1], key.shape[1])
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=LEAST))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, (total if visible is None else jnp.where(total == 0, 1, total))


# blocked: queries block by block, of each the blocks of keys that it may see.


class _Arrays(NamedTuple):
    """What of a mask is arrays, padded to whole blocks; positions always."""

    positions: jax.Array  # [B or 1, T]
    lengths: jax.Array  # [B or 1]
    segments: tuple[jax.Array, jax.Array] | None

    @classmethod
    def of(cls, mask: Mask, queries: int, keys: int) -> "_Arrays":
        positions = jnp.arange(queries)[None] if mask.positions is None else mask.positions
        lengths = jnp.full((1,), keys) if mask.lengths is None else mask.lengths
        return cls(positions, lengths, mask.segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _blocked(
    causal: bool,
    window: int | None,
    scale: float,
    soft_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    arrays: _Arrays,
) -> jax.Array:
    return _blocked_forward(causal, window, scale, soft_cap, query, key, value, arrays)[0]


def _to_blocks(x: jax.Array, block: int, axis: int) -> jax.Array:
    """Padded with zeros along `axis` to whole blocks, which come first: [n, ..., block, ...]."""
    missing = -x.shape[axis] % block
    x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    shape = (*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _from_blocks(x: jax.Array, axis: int, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


class _Blocks(NamedTuple):
    """Queries [n, B, K, G, t, D] and keys [m, B, K, s, D] in blocks, and what the mask of a block needs."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    places: jax.Array  # [n, B or 1, t]
    segments: tuple[jax.Array, jax.Array] | None  # [n, B, t], [m, B, s]


def block_size(length: int) -> int:
    """Queries, or keys, of a block: short sequences have smaller ones, so that a causal mask hides some."""
    return 64 if length <= 512 else 128


def _cut(query: jax.Array, key: jax.Array, value: jax.Array, arrays: _Arrays) -> _Blocks:
    block, keys_block = min(block_size(key.shape[1]), query.shape[1]), block_size(key.shape[1])
    places = jnp.pad(arrays.positions, ((0, 0), (0, -query.shape[1] % block)), mode="edge")
    segments = arrays.segments
    if segments is not None:
        segments = _to_blocks(segments[0], block, 1), _to_blocks(segments[1], keys_block, 1)
    keys, values = (_to_blocks(x.transpose(0, 2, 1, 3), keys_block, 2) for x in (key, value))
    queries = _to_blocks(_by_head(query, key.shape[2]), block, 3)
    return _Blocks(queries, keys, values, _to_blocks(places, block, 1), segments)


def _bounds(
    causal: bool, window: int | None, places: jax.Array, longest: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """The first block of keys that queries at `places` may see, and the one after the last."""
    first, last = jnp.array(0), longest - 1
    if causal:
        last = jnp.minimum(last, jnp.max(places))
    if window is not None:
        first = jnp.maximum(first, jnp.min(places) - window + 1)
        last = jnp.minimum(last, jnp.max(places) + window - 1)
    return first // block, last // block + 1


def _block_scores(
    causal: bool,
    window: int | None,
    scale: float,
    soft_cap: float | None,
    blocks: _Blocks,
    lengths: jax.Array,
    item: Any,
    j: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores [B, K, G, t, s] of a block of queries and block j of keys, -inf where hidden; and the capped before."""
    query, places, segments = item
    block = blocks.key.shape[3]
    scores = _scores(query, blocks.key[j], scale, soft_cap)
    pair = None if segments is None or blocks.segments is None else (segments, blocks.segments[1][j])
    visible = Mask(causal, window, lengths).of_block(places, j * block + jnp.arange(block), pair)
    return jnp.where(visible[:, None, None], scores, -jnp.inf), scores  # type: ignore[index]


def _blocked_forward(causal, window, scale, soft_cap, query, key, value, arrays):
    blocks = _cut(query, key, value, arrays)
    longest = jnp.max(arrays.lengths)

    def of_queries(_, item):
        def add(j, carry):
            out, largest, total = carry
            scores, _ = _block_scores(causal, window, scale, soft_cap, blocks, arrays.lengths, item, j)
            now = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrunk = jnp.exp(scores - now), jnp.exp(largest - now)
            total = total * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
            return out * shrunk + _times(weights, blocks.value[j]), now, total

        zero = jnp.zeros(item[0].shape, jnp.float32)
        start = zero, jnp.full_like(zero[..., :1], LEAST), zero[..., :1]
        out, largest, total = lax.fori_loop(*_bounds(causal, window, item[1], longest, blocks.key.shape[3]), add, start)
        total = jnp.where(total == 0, 1, total)
        return None, ((out / total).astype(query.dtype), (largest + jnp.log(total))[..., 0])

    items = (blocks.query, blocks.places, None if blocks.segments is None else blocks.segments[0])
    _, (out, logsumexp) = lax.scan(of_queries, None, items)
    result = _by_time(_from_blocks(out, 3, query.shape[1]))
    return result, (query, key, value, arrays, out, logsumexp)


def _blocked_backward(causal, window, scale, soft_cap, saved, gradient):
    query, key, value, arrays, out, logsumexp = saved
    blocks = _cut(query, key, value, arrays)
    longest = jnp.max(arrays.lengths)
    by_out = _to_blocks(_by_head(gradient, key.shape[2]), out.shape[4], 3)

    def transposed_times(weights, rows):  # [B, K, G, t, s] and [B, K, G, t, D] to [B, K, s, D]
        weights = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(rows.dtype)
        rows = rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
        contract = (((2,), (2,)), ((0, 1), (0, 1)))
        return lax.dot_general(weights, rows, contract, preferred_element_type=jnp.float32)

    def of_queries(by_keys_values, item):
        (queries, places, _), by_rows, rows, row_logsumexp = item
        along = jnp.sum(by_rows.astype(jnp.float32) * rows.astype(jnp.float32), axis=-1, keepdims=True)

        def add(j, carry):
            by_query, by_key, by_value = carry
            scores, capped = _block_scores(causal, window, scale, soft_cap, blocks, arrays.lengths, item[0], j)
            weights = jnp.exp(scores - row_logsumexp[..., None])
            by_weights = _scores(by_rows, blocks.value[j], 1.0, None)
            by_scores = weights * (by_weights - along) * scale
            if soft_cap is not None:
                by_scores = by_scores * (1 - jnp.square(capped / soft_cap))
            by_key = by_key.at[j].add(transposed_times(by_scores, queries))
            by_value = by_value.at[j].add(transposed_times(weights, by_rows))
            return by_query + _times(by_scores, blocks.key[j]), by_key, by_value

        start = (jnp.zeros(queries.shape, jnp.float32), *by_keys_values)
        by_query, *rest = lax.fori_loop(*_bounds(causal, window, places, longest, blocks.key.shape[3]), add, start)
        return tuple(rest), by_query.astype(query.dtype)

    items = (blocks.query, blocks.places, None if blocks.segments is None else blocks.segments[0])
    start = (jnp.zeros(blocks.key.shape, jnp.float32), jnp.zeros(blocks.value.shape, jnp.float32))
    (by_key, by_value), by_query = lax.scan(of_queries, start, (items, by_out, out, logsumexp))
    by_query = _by_time(_from_blocks(by_query, 3, query.shape[1]))
    by_key, by_value = (
        _from_blocks(x, 2, key.shape[1]).transpose(0, 2, 1, 3).astype(like.dtype)
        for x, like in ((by_key, key), (by_value, value))
    )
    return by_query, by_key, by_value, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


# Other people's kernels.


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, scale: float) -> jax.Array:
    ahead = 0 if mask.causal else (mask.window or 1) - 1
    window = None if mask.window is None else (mask.window - 1, ahead)
    lengths = mask.lengths
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=window,
        query_seq_lengths=None if lengths is None else jnp.full((len(query),), query.shape[1], jnp.int32),
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

    T and S are multiples of 128, or it is a ZooError. What `lengths` hides is a segment of its own.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    queries, keys, heads = query.shape[1], key.shape[1], key.shape[2]
    if queries % LANES or keys % LANES:
        raise ZooError(f"attention 'pallas' takes lengths that are multiples of {LANES}, not {queries} and {keys}")
    grouped = _by_head(query * scale, heads)  # [B, K, G, T, D]
    seen: Any = library.FullMask((queries, keys))
    if mask.window is not None:
        seen = library.LocalMask((queries, keys), (mask.window - 1, 0 if mask.causal else mask.window - 1), 0)
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
        mine = jnp.zeros((len(query), queries), jnp.int32) if segments is None else segments[0]
        segments = mine, jnp.where(present, 0 if segments is None else segments[1], -1)
    ids = None if segments is None else library.SegmentIds(*segments)
    of_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out = jax.vmap(of_heads)(grouped, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), ids)
    return _by_time(out).astype(query.dtype)
