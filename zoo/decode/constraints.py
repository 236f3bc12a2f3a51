"""Constraints on the next token, shared by sampling and beam search.

A penalty for repeated tokens (Keskar et al. 2019), no repeated n-grams (Paulus et al. 2018), banned tokens, a minimum
length, and processors of one's own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError
from zoo.ops.precision import at_least_float32

Processor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraints:
    """Applied in the order of the fields, before a temperature and top-k, top-p and min-p.

    A processor is a pure function of the logits [N, V] (in beam search log probabilities), the tokens so far int32
    [N, T], prompt included, and their number int32 [N]; what lies beyond is padding. It returns logits [N, V], minus
    infinity for excluded tokens (those excluded before it stay so), and is traced once: give the same function object
    again, not a new lambda.
    """

    repetition_penalty: float = 1.0  # above 1, tokens of the prompt and the output become less probable
    banned: tuple[int, ...] = ()  # ids that are never generated
    min_length: int = 0  # tokens to generate before `end` may be
    no_repeat_ngram: int | None = None  # no n-gram of this size twice, prompt included, unless no token were left
    forced_first: int | None = None  # the first token to generate, with probability 1
    end_after: int | None = None  # tokens to generate before `end`, with probability 1
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned", tuple(sorted({int(token) for token in self.banned})))
        object.__setattr__(self, "processors", tuple(self.processors))
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ZooError(f"repetition-penalty must be above 0, not {self.repetition_penalty}")
        if self.min_length < 0:
            raise ZooError(f"min-length must be at least 0, not {self.min_length}")
        if self.end_after is not None and self.end_after < 1:
            raise ZooError(f"end-after must be at least 1, not {self.end_after}")
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 1:
            raise ZooError(f"no-repeat-ngram must be at least 1, not {self.no_repeat_ngram}")

    @property
    def need_history(self) -> bool:
        """Whether the next token depends on the tokens before it other than through the model."""
        return bool(self.repetition_penalty != 1 or self.no_repeat_ngram or self.processors)

    @property
    def active(self) -> bool:
        forced = self.forced_first is not None or self.end_after is not None
        return bool(self.need_history or self.banned or self.min_length or forced)


def check_constraints(constraints: Constraints, vocab_size: int, end: int | None) -> None:
    """ZooError for tokens outside the vocabulary, a minimum length without `end`, and bans that leave no token."""
    if end is not None and not 0 <= end < vocab_size:
        raise ZooError(f"end {end} is outside the vocabulary of {vocab_size}")
    wrong = [token for token in constraints.banned if not 0 <= token < vocab_size]
    if wrong:
        raise ZooError(f"banned token {wrong[0]} is outside the vocabulary of {vocab_size}")
    forced = constraints.forced_first
    if forced is not None and (not 0 <= forced < vocab_size or forced in constraints.banned):
        raise ZooError(f"forced-first {forced} must be a token of the vocabulary of {vocab_size} that is not banned")
    for name in ("min_length", "end_after"):
        if (value := getattr(constraints, name)) and end is None:
            name = name.replace("_", "-")
            raise ZooError(f"{name} {value} needs an end-of-text token, and none is known: give `end`")
    excluded = set(constraints.banned) | ({end} if constraints.min_length else set())
    if len(excluded) == vocab_size:
        raise ZooError(f"all {vocab_size} tokens are banned; at least one must remain")


def constrained(
    logits: jax.Array, constraints: Constraints, end: int | None, new: Any, tokens: Any, lengths: Any
) -> jax.Array:
    """Logits [N, V] under the constraints, minus infinity for excluded tokens.

    `new` tokens have been generated; row n has `lengths[n]` of its `tokens` int32 [N, T], both None unless
    `need_history`.
    """
    size = logits.shape[-1]
    if constraints.repetition_penalty != 1:
        logits = penalised(logits, members(tokens, lengths, size), constraints.repetition_penalty)
    if constraints.banned:
        logits = jnp.where(np.isin(np.arange(size), constraints.banned), -jnp.inf, logits)
    if constraints.min_length:
        logits = jnp.where((new < constraints.min_length) & (np.arange(size) == end), -jnp.inf, logits)
    if constraints.no_repeat_ngram:
        left = jnp.where(repeating(tokens, lengths, constraints.no_repeat_ngram, size), -jnp.inf, logits)
        logits = jnp.where(jnp.max(left, axis=-1, keepdims=True) > -jnp.inf, left, logits)
    for token, place in ((constraints.forced_first, 0), (end, constraints.end_after)):
        if token is not None and place is not None:
            alone = np.where(np.arange(size) == token, 0, -np.inf).astype(logits.dtype)
            logits = jnp.where(new == place, alone, logits)
    for processor in constraints.processors:
        logits = processor(logits, tokens, lengths)
    return logits


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits [N, V] with those of `seen` tokens, bool [N, V], lowered by the penalty (raised, if it is below 1)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def members(tokens: jax.Array, lengths: jax.Array, vocab_size: int) -> jax.Array:
    """The set of the first `lengths[n]` of the tokens [N, T] of each row, bool [N, V]."""
    known = jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], tokens, vocab_size)
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab_size), bool).at[rows, known].set(True, mode="drop")


def repeating(tokens: jax.Array, lengths: jax.Array, n: int, vocab_size: int) -> jax.Array:
    """The tokens that would complete an n-gram for the second time, bool [N, V]; tokens [N, T] as in `members`."""
    if tokens.shape[1] < n:
        return jnp.zeros((len(tokens), vocab_size), bool)
    starts = jnp.arange(tokens.shape[1] - n + 1)
    last = jnp.maximum(lengths[:, None] - n + 1 + jnp.arange(n - 1), 0)  # where the last n - 1 tokens are
    latest = jnp.take_along_axis(tokens, last, axis=1)
    same = starts + n <= lengths[:, None]
    for k in range(n - 1):
        same &= tokens[:, k : k + len(starts)] == latest[:, k, None]
    return members(jnp.where(same, tokens[:, n - 1 :], vocab_size), jnp.full_like(lengths, len(starts)), vocab_size)


def in_float32(array: jax.Array) -> jax.Array:
    """The array in float32, or in its own dtype where that is wider."""
    return array.astype(at_least_float32(array))
