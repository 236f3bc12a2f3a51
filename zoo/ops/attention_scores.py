"""Visibility of keys to queries, scores and weighted sums: the parts shared by the implementations of attention.

Heads are laid out [B, K, G, T, D], with the G query heads of a key head side by side.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.errors import ZooError
from zoo.ops.precision import at_least_float32

Window = int | tuple[int | None, int | None]


class Mask(NamedTuple):
    """Which keys a query sees: those that satisfy every given condition.

    `causal`: the key's position is not after the query's. `window`: it is fewer than `window` positions before the
    query (and, without `causal`, after it); or (before, after), the most positions to each side, None for all.
    `lengths` [B]: it is among the row's first `lengths` keys. `segments`, int32 [B, T] and [B, S]: it has the query's
    number. `positions` int32 [B, T] are the queries' positions among the keys, where they are not 0 to T - 1.
    """

    causal: bool = False
    window: Window | None = None
    lengths: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    positions: jax.Array | None = None

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """The most positions that a query sees before and after its own, None for all; ZooError for a wrong window."""
        sides = (
            self.window if isinstance(self.window, tuple) else (None if self.window is None else self.window - 1,) * 2
        )
        if len(sides) != 2 or any(side is not None and side < 0 for side in sides):
            raise ZooError(
                f"window {self.window} must be 1 or more, or (before, after), each 0 or more, or None for all"
            )
        return sides[0], 0 if self.causal else sides[1]

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
        before, after = self.reach
        if after is not None:
            seen.append(ahead <= after)
        if before is not None:
            seen.append(ahead >= -before)
        if self.lengths is not None:
            seen.append(keys < self.lengths[:, None, None])
        if segments is not None:
            seen.append(segments[0][:, :, None] == segments[1][:, None, :])
        return functools.reduce(jnp.logical_and, seen) if seen else None


def hidden_keys(lengths: jax.Array | None, bias: jax.Array | None, keys: int) -> jax.Array | None:
    """The padding, bool [B or 1, S or 1]: keys that lengths, or a bias (-inf, or False), hide from every query of a row
    in every head; None without both."""
    hidden = None if lengths is None else jnp.arange(keys) >= lengths[:, None]
    if bias is None:
        return hidden
    by_bias = jnp.all(~bias if bias.dtype == bool else jnp.isneginf(bias), axis=(1, 2))
    return by_bias if hidden is None else hidden | by_bias


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
    """Scores with the cap applied, [B, K, G, t, s] in float32 or more, from [B, K, G, t, D] and [B, K, s, D]."""
    rows = merged(query)  # the G heads are rows of one product
    contract, dtype = (((3,), (3,)), ((0, 1), (0, 1))), at_least_float32(query, key)
    scores = lax.dot_general(rows, key, contract, preferred_element_type=dtype)
    scores = scores.reshape(*query.shape[:4], key.shape[2]) * scale
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def least(dtype: Any) -> Any:
    """The smallest finite score: where every score of a row is -inf, exp(score - least) is 0 and not NaN."""
    return jnp.finfo(dtype).min


def unnormalised(scores: jax.Array, visible: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """exp(score - row maximum) for scores [..., S], 0 where hidden or -inf; and the sums [..., 1], 1 for a row without
    keys."""
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=least(scores.dtype)))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, jnp.where(total == 0, 1, total)


def weighted_sums(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, K, G, t, s] times [B, K, s, D]: [B, K, G, t, D] in float32 or more."""
    rows = merged(weights).astype(value.dtype)
    contract = (((3,), (2,)), ((0, 1), (0, 1)))
    product = lax.dot_general(rows, value, contract, preferred_element_type=at_least_float32(value))
    return product.reshape(*weights.shape[:4], value.shape[3])
