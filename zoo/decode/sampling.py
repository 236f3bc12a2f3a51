"""Sampling from a model of the sequence protocol, the loop over tokens compiled.

The most probable token, or one drawn at a temperature from the `top_k` most probable (Fan et al. 2018) or the smallest
set of them whose probability reaches `top_p` (Holtzman et al. 2020).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits."""

    temperature: float = 1.0  # divides the logits; 0 takes the most probable token
    top_k: int | None = None  # draw from so many of the most probable
    top_p: float | None = None  # draw from the fewest of the most probable that have this probability together

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ZooError(f"temperature must be a number of at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ZooError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ZooError(f"top-p must be in (0, 1], not {self.top_p}")


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [..., V] in float32 at the temperature, minus infinity where they may not be drawn."""
    logits = logits.astype(jnp.float32) / (sampling.temperature or 1.0)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # what the more probable ones have
        least = jnp.min(jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """A token int32 [...] of logits [..., V]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered(logits, sampling)).astype(jnp.int32)


def sample(
    model: nn.Module,
    variables: Any,
    prompts: Any,
    steps: int,
    sampling: Sampling | None = None,
    *,
    lengths: Any = None,
    seed: int = 0,
    chunk: int | None = None,
) -> Iterator[np.ndarray]:
    """The `steps` tokens that follow each of the prompts int [B, T], of which row b has `lengths[b]`: int32 [B, n].

    Yields `chunk` of them at a time, each from one dispatch of a compiled loop, by default all at once. Token i of the
    answer depends on the seed and i, not on the chunks. ZooError for a prompt without tokens or with strange ones.
    """
    prompts, sampling = np.asarray(prompts), sampling or Sampling()
    lengths = np.full(len(prompts), prompts.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    if steps < 1:
        raise ZooError(f"the number of tokens to generate must be at least 1, not {steps}")
    if not prompts.size or lengths.min() < 1:
        raise ZooError("a prompt needs at least one token")
    vocab_size = model.vocab_size  # type: ignore[attr-defined]
    if prompts.min() < 0 or prompts.max() >= vocab_size:
        wrong = prompts.min() if prompts.min() < 0 else prompts.max()
        raise ZooError(f"token {wrong} is outside the vocabulary of {vocab_size}")
    padded = 1 << (prompts.shape[1] - 1).bit_length()  # so that few lengths are compiled
    prompts = np.pad(prompts.astype(np.int32), ((0, 0), (0, padded - prompts.shape[1])))
    key, chunk = jax.random.key(seed), min(chunk or steps, steps)
    logits, state = _read(model, padded + steps, variables, prompts, lengths)
    for start in range(0, steps, chunk):
        tokens, logits, state = _continue(model, sampling, chunk, variables, state, logits, key, start)
        yield np.asarray(tokens)[:, : steps - start]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
    model: nn.Module, max_length: int, variables: Any, prompts: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Any]:
    """The logits [B, V] after each prompt, and the state."""
    state = model.init_state(len(prompts), max_length)  # type: ignore[attr-defined]
    logits, state = model.apply(variables, prompts, state=state, lengths=lengths)
    return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0], state


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _continue(
    model: nn.Module,
    sampling: Sampling,
    steps: int,
    variables: Any,
    state: Any,
    logits: jax.Array,
    key: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Tokens [B, steps] from `logits` on; the logits and the state after them."""

    def step(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        logits, state = carry
        tokens = choose(logits, sampling, jax.random.fold_in(key, i))
        logits, state = model.apply(variables, tokens[:, None], state=state)
        return (logits[:, 0], state), tokens

    (logits, state), tokens = jax.lax.scan(step, (logits, state), start + jnp.arange(steps))
    return tokens.T, logits, state
