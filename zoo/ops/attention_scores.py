"""Visibility of keys to queries, scores and weighted sums: the parts shared by the implementations of attention.

Heads are laid out [B, K, G, T, D], with the G query heads of a key head side by side.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LEAST = -1e30  # below any score, and finite


class Mask(NamedTuple):
    """Which keys a query sees: those that satisfy every given condition.

    `causal`: the key's position is not after the query's. `window`: it is fewer than `window` positions before the
    query (and, without `causal`, after it). `lengths` [B]: it is among the row's first `lengths` keys. `segments`,
    int32 [B, T] and [B, S]: it has the query's number. `positions` int32 [B, T] are the queries' positions among the
    keys, where they are not 0 to T - 1.
    """

    causal: bool = False
    window: int | None = None
    lengths: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    positions: jax.Array | None = None

    def visible(self, queries: int, keys: int) -> jax.Array | None:
        """bool [B or 1, T, S]; None if every key is visible."""
        places = jnp.arange(queries)[None] if self.positions is None else self.positions
        return self.of_block(places, jnp.arange(keys), None if self.segments is None else self.segments)

    def of_block(
        self, places: jax.Array, keys: jax.Array, segments: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array | None:
        """`visible` for queries at `places` [B or 1, t] and keys at `keys` [s]; segments are [B, t] and [B, s]."""
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


def by_head(query: jax.Array, heads: int) -> jax.Array:
    """[B, T, N, D] to [B, K, G, T, D]."""
    rows, steps, all_heads, width = query.shape
    return query.reshape(rows, steps, heads, all_heads // heads, width).transpose(0, 2, 3, 1, 4)


def by_time(x: jax.Array) -> jax.Array:
    """[B, K, G, T, D] to [B, T, N, D]."""
    return x.transpose(0, 3, 1, 2, 4).reshape(x.shape[0], x.shape[3], x.shape[1] * x.shape[2], x.shape[4])


def merged(x: jax.Array) -> jax.Array:
    """[B, K, G, t, D] to [B, K, G t, D]."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4])


def scaled_scores(query: jax.Array, key: jax.Array, scale: float, soft_cap: float | None) -> jax.Array:
    """Scores with the cap applied, float32 [B, K, G, t, s], from [B, K, G, t, D] and [B, K, s, D]."""
    rows = merged(query)  # the G heads are rows of one product
    contract = (((3,), (3,)), ((0, 1), (0, 1)))
    scores = lax.dot_general(rows, key, contract, preferred_element_type=jnp.float32)
    scores = scores.reshape(*query.shape[:4], key.shape[2]) * scale
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def unnormalised(scores: jax.Array, visible: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """exp(score - row maximum) for scores [..., S], 0 where hidden; and the sums [..., 1], 1 for a row without keys."""
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=LEAST))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, (total if visible is None else jnp.where(total == 0, 1, total))


def weighted_sums(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, K, G, t, s] times [B, K, s, D]: float32 [B, K, G, t, D]."""
    rows = merged(weights).astype(value.dtype)
    contract = (((3,), (2,)), ((0, 1), (0, 1)))
    product = lax.dot_general(rows, value, contract, preferred_element_type=jnp.float32)
    return product.reshape(*weights.shape[:4], value.shape[3])
