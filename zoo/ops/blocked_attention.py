"""Attention block by block: for each block of queries, the blocks of keys that it may see.

The online softmax of Milakov and Gimelshein 2018, with the gradient from each row's logsumexp as in FlashAttention-2
(Dao 2023): memory is linear in T, and blocks that the mask hides are skipped.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from zoo.ops.attention_scores import Mask, Window, by_head, by_time, least, merged, scaled_scores, weighted_sums
from zoo.ops.precision import at_least_float32


class Arrays(NamedTuple):
    """The arrays of a mask, padded to whole blocks; positions are always given."""

    positions: jax.Array  # [B or 1, T]
    lengths: jax.Array | None  # [B]
    segments: tuple[jax.Array, jax.Array] | None

    @classmethod
    def of(cls, mask: Mask, queries: int) -> "Arrays":
        positions = jnp.arange(queries, dtype=jnp.int32)[None] if mask.positions is None else mask.positions
        return cls(positions, mask.lengths, mask.segments)

    def within(self, keys: int) -> jax.Array:
        """The number of keys of each row [B or 1], of `keys` in the array."""
        return jnp.full((1,), keys, jnp.int32) if self.lengths is None else self.lengths


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def blocked(
    causal: bool,
    window: Window | None,
    scale: float,
    soft_cap: float | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    arrays: Arrays,
) -> jax.Array:
    return _blocked_forward(causal, window, scale, soft_cap, query, key, value, arrays)[0]


def blocks_of(length: int, block: int) -> tuple[int, int]:
    """The number of blocks of a sequence, and what the last one lacks; in a form that holds for symbolic lengths."""
    count = -(-length // block)
    return count, count * block - length


def _to_blocks(x: jax.Array, block: int, axis: int) -> jax.Array:
    """x padded with zeros along `axis` and split into blocks, which come first: [n, ..., block, ...]."""
    count, missing = blocks_of(x.shape[axis], block)
    x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    shape = (*x.shape[:axis], count, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _from_blocks(x: jax.Array, axis: int, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


class _Blocks(NamedTuple):
    """Queries [n, B, K, G, t, D] and keys [m, B, K, s, D] in blocks, and the arrays for each block's mask."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    places: jax.Array  # [n, B or 1, t]
    segments: tuple[jax.Array, jax.Array] | None  # [n, B, t], [m, B, s]


def block_size(length: int) -> int:
    """The number of queries or keys in a block: smaller for short sequences, so that causal masks hide some."""
    return 64 if not is_symbolic_dim(length) and length <= 512 else 128


def _cut(query: jax.Array, key: jax.Array, value: jax.Array, arrays: Arrays) -> _Blocks:
    keys_block = block_size(key.shape[1])
    block = keys_block if is_symbolic_dim(query.shape[1]) else min(keys_block, query.shape[1])
    places = jnp.pad(arrays.positions, ((0, 0), (0, blocks_of(query.shape[1], block)[1])), mode="edge")
    segments = arrays.segments
    if segments is not None:
        segments = _to_blocks(segments[0], block, 1), _to_blocks(segments[1], keys_block, 1)
    keys, values = (_to_blocks(x.transpose(0, 2, 1, 3), keys_block, 2) for x in (key, value))
    queries = _to_blocks(by_head(query, key.shape[2]), block, 3)
    return _Blocks(queries, keys, values, _to_blocks(places, block, 1), segments)


def _bounds(
    causal: bool, window: Window | None, places: jax.Array, longest: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """The first block of keys visible to queries at `places`, and the one after the last."""
    first, last = jnp.zeros_like(longest), longest - 1
    before, after = Mask(causal, window).reach
    if after is not None:
        last = jnp.minimum(last, jnp.max(places) + after)
    if before is not None:
        first = jnp.maximum(first, jnp.min(places) - before)
    return first.astype(jnp.int32) // block, last.astype(jnp.int32) // block + 1


def _block_scores(
    causal: bool,
    window: Window | None,
    scale: float,
    soft_cap: float | None,
    blocks: _Blocks,
    lengths: jax.Array,
    item: Any,
    j: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores [B, K, G, t, s] of a block of queries and block j of keys, -inf where hidden; and the capped scores before
    masking."""
    query, places, segments = item
    block = blocks.key.shape[3]
    scores = scaled_scores(query, blocks.key[j], scale, soft_cap)
    pair = None if segments is None or blocks.segments is None else (segments, blocks.segments[1][j])
    visible = Mask(causal, window, lengths).of_block(places, j * block + jnp.arange(block), pair)
    return jnp.where(visible[:, None, None], scores, -jnp.inf), scores  # type: ignore[index]


def _blocked_forward(causal, window, scale, soft_cap, query, key, value, arrays):
    blocks = _cut(query, key, value, arrays)
    lengths = arrays.within(key.shape[1])
    longest = jnp.max(lengths)

    def of_queries(_, item):
        def add(j, carry):
            out, largest, total = carry
            scores, _ = _block_scores(causal, window, scale, soft_cap, blocks, lengths, item, j)
            now = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrunk = jnp.exp(scores - now), jnp.exp(largest - now)
            total = total * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
            return out * shrunk + weighted_sums(weights, blocks.value[j]), now, total

        zero = jnp.zeros((*item[0].shape[:-1], value.shape[-1]), at_least_float32(query, value))
        start = zero, jnp.full_like(zero[..., :1], least(zero.dtype)), zero[..., :1]
        out, largest, total = lax.fori_loop(*_bounds(causal, window, item[1], longest, blocks.key.shape[3]), add, start)
        total = jnp.where(total == 0, 1, total)
        return None, ((out / total).astype(query.dtype), (largest + jnp.log(total))[..., 0])

    items = (blocks.query, blocks.places, None if blocks.segments is None else blocks.segments[0])
    _, (out, logsumexp) = lax.scan(of_queries, None, items)
    result = by_time(_from_blocks(out, 3, query.shape[1]))
    return result, (query, key, value, arrays, out, logsumexp)


def _blocked_backward(causal, window, scale, soft_cap, saved, gradient):
    query, key, value, arrays, out, logsumexp = saved
    blocks = _cut(query, key, value, arrays)
    lengths, dtype = arrays.within(key.shape[1]), at_least_float32(query, value)
    longest = jnp.max(lengths)
    by_out = _to_blocks(by_head(gradient, key.shape[2]), out.shape[4], 3)

    def transposed_times(weights, rows):  # [B, K, G, t, s] and [B, K, G, t, D] to [B, K, s, D]
        weights, rows = merged(weights).astype(rows.dtype), merged(rows)
        contract = (((2,), (2,)), ((0, 1), (0, 1)))
        return lax.dot_general(weights, rows, contract, preferred_element_type=dtype)

    def of_queries(by_keys_values, item):
        (queries, places, segments), by_rows, rows, row_logsumexp = item
        if arrays.lengths is not None:  # a result without a gradient may be padding, of NaN
            unused = jnp.all(by_rows == 0, axis=-1, keepdims=True)
            queries, rows = jnp.where(unused, 0, queries), jnp.where(unused, 0, rows)
            row_logsumexp = jnp.where(unused[..., 0], jnp.inf, row_logsumexp)
        along = jnp.sum(by_rows.astype(dtype) * rows.astype(dtype), axis=-1, keepdims=True)

        def add(j, carry):
            by_query, by_key, by_value = carry
            scores, capped = _block_scores(causal, window, scale, soft_cap, blocks, lengths, own, j)
            weights = jnp.exp(scores - row_logsumexp[..., None])
            by_weights = scaled_scores(by_rows, blocks.value[j], 1.0, None)
            by_scores = weights * (by_weights - along) * scale
            if soft_cap is not None:
                by_scores = by_scores * (1 - jnp.square(capped / soft_cap))
            by_key = by_key.at[j].add(transposed_times(by_scores, queries))
            by_value = by_value.at[j].add(transposed_times(weights, by_rows))
            return by_query + weighted_sums(by_scores, blocks.key[j]), by_key, by_value

        own = queries, places, segments
        start = (jnp.zeros(queries.shape, dtype), *by_keys_values)
        by_query, *rest = lax.fori_loop(*_bounds(causal, window, places, longest, blocks.key.shape[3]), add, start)
        return tuple(rest), by_query.astype(query.dtype)

    items = (blocks.query, blocks.places, None if blocks.segments is None else blocks.segments[0])
    start = (jnp.zeros(blocks.key.shape, dtype), jnp.zeros(blocks.value.shape, dtype))
    (by_key, by_value), by_query = lax.scan(of_queries, start, (items, by_out, out, logsumexp))
    by_query = by_time(_from_blocks(by_query, 3, query.shape[1]))
    by_key, by_value = (
        _from_blocks(x, 2, key.shape[1]).transpose(0, 2, 1, 3).astype(like.dtype)
        for x, like in ((by_key, key), (by_value, value))
    )
    return by_query, by_key, by_value, None


blocked.defvjp(_blocked_forward, _blocked_backward)
