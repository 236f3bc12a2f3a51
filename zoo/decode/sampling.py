"""Sampling from a model of the sequence protocol; the loop over tokens is compiled.

The most probable token, or one drawn at a temperature from the `top_k` most probable (Fan et al. 2018), from the
smallest set whose probability reaches `top_p` (Holtzman et al. 2020), or from those at least `min_p` times as probable
as the most probable (Nguyen et al. 2024). Earlier tokens can be made less probable (Keskar et al. 2019).
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
from zoo.sequence import check_source
from zoo.transformer.layers import unscanned


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits."""

    temperature: float = 1.0  # divides the logits; 0 takes the most probable token
    top_k: int | None = None  # draw from this many of the most probable
    top_p: float | None = None  # draw from the smallest set with this total probability
    min_p: float | None = None  # draw from those with this share of the highest probability
    repetition_penalty: float = 1.0  # above 1, tokens of the prompt and the output become less probable

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ZooError(f"temperature must be a number of at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ZooError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ZooError(f"top-p must be in (0, 1], not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ZooError(f"min-p must be in [0, 1], not {self.min_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ZooError(f"repetition-penalty must be above 0, not {self.repetition_penalty}")


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [..., V] in float32 divided by the temperature, minus infinity for excluded tokens."""
    logits = logits.astype(jnp.float32) / (sampling.temperature or 1.0)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # total probability of the more probable tokens
        least = jnp.min(jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits [B, V] with those of `seen` tokens, bool [B, V], lowered by the penalty (raised, if it is below 1)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Token ids int32 [...] from logits [..., V]."""
    if sampling.temperature == 0:
        return first_largest(logits)
    return jax.random.categorical(key, filtered(logits, sampling)).astype(jnp.int32)


def first_largest(logits: jax.Array) -> jax.Array:
    """`jnp.argmax` over the last axis, int32, as two reductions: these vectorise on CPU, XLA's argmax does not."""
    size = logits.shape[-1]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == largest, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1)


def sample(
    model: nn.Module,
    variables: Any,
    prompts: Any,
    steps: int,
    sampling: Sampling | None = None,
    *,
    lengths: Any = None,
    source: Any = None,
    source_lengths: Any = None,
    seed: int = 0,
    chunk: int | None = None,
) -> Iterator[np.ndarray]:
    """The `steps` tokens that continue each of the prompts int [B, T], `lengths[b]` tokens in row b: int32 [B, n].

    Yields `chunk` tokens at a time (fewer where a context is full), each chunk from one dispatch of a compiled loop; by
    default all at once. Token i depends on the seed and i, not on the chunks. When the context of a model with
    `max_length` is full, generation continues from its last half. ZooError for an empty prompt, for tokens outside the
    vocabulary, and for a prompt longer than max_length.

    An encoder-decoder needs a `source` int [B, S], `source_lengths[b]` tokens in row b, and its prompts are
    the beginnings of targets. It does not continue from half of a target: ZooError if `steps` exceeds its max_length.
    """
    prompts, sampling = np.asarray(prompts), sampling or Sampling()
    lengths = np.full(len(prompts), prompts.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    check_prompts(model, prompts, lengths, steps)
    check_sources(model, source, source_lengths, int(lengths.max()) + steps)
    model, variables = unscanned(model, variables)
    limit = getattr(model, "max_length", None)
    key, chunk, done = jax.random.key(seed), min(chunk or steps, steps), 0
    texts = [row[:length] for row, length in zip(prompts.astype(np.int32), lengths, strict=True)]
    seen = _seen(prompts, lengths, model.vocab_size)  # type: ignore[attr-defined]
    while done < steps:
        logits, state, room = _begin(model, variables, texts, steps - done, limit, (source, source_lengths))
        while room > 0 and done < steps:
            n = min(chunk, room)
            tokens, logits, state, seen = _continue(model, sampling, n, variables, state, logits, seen, key, done)
            tokens = np.asarray(tokens)
            yield tokens[:, : steps - done]
            texts = [np.concatenate(pair) for pair in zip(texts, tokens, strict=True)]
            done, room = done + n, room - n


def check_prompts(model: nn.Module, prompts: np.ndarray, lengths: np.ndarray, steps: int) -> None:
    """ZooError for prompts that `sample` cannot continue."""
    if steps < 1:
        raise ZooError(f"the number of tokens to generate must be at least 1, not {steps}")
    if not prompts.size or lengths.min() < 1:
        raise ZooError("a prompt needs at least one token")
    limit, longest = getattr(model, "max_length", None), int(lengths.max())
    if limit is not None and longest > limit:
        raise ZooError(
            f"the prompt has {longest} tokens, more than the model's max_length of {limit}; give only its end"
        )
    vocab_size = model.vocab_size  # type: ignore[attr-defined]
    if prompts.min() < 0 or prompts.max() >= vocab_size:
        wrong = prompts.min() if prompts.min() < 0 else prompts.max()
        raise ZooError(f"token {wrong} is outside the vocabulary of {vocab_size}")


def check_sources(model: nn.Module, source: Any, lengths: Any, longest: int) -> None:
    """ZooError for a missing, unexpected or invalid source, and for targets longer than max_length."""
    name, limit = type(model).__name__, getattr(model, "max_length", None)
    if hasattr(model, "encode") != (source is not None):
        raise ZooError(f"{name} {'takes no source' if source is not None else 'needs a source'}")
    if source is None:
        return
    check_source(model, np.asarray(source), lengths)
    if limit is not None and longest > limit:
        raise ZooError(f"a target of {longest} tokens is longer than {name}'s max_length of {limit}")


def _seen(prompts: np.ndarray, lengths: np.ndarray, vocab_size: int) -> np.ndarray:
    """The set of tokens in each prompt, bool [B, V]."""
    seen = np.zeros((len(prompts), vocab_size), bool)
    for row, prompt, length in zip(seen, prompts, lengths, strict=True):
        row[prompt[:length]] = True
    return seen


def _begin(
    model: nn.Module, variables: Any, texts: list[np.ndarray], steps: int, limit: int | None, source: Any
) -> tuple[jax.Array, Any, int]:
    """The logits after the texts (the last half of a full context), the state, and how many tokens may follow."""
    if limit is not None and max(map(len, texts)) >= limit:  # no room to continue from all of it
        texts = [text[-max(1, limit // 2) :] for text in texts]
    lengths = np.array([len(text) for text in texts], np.int32)
    longest = int(lengths.max())
    padded = 1 << (longest - 1).bit_length()  # so that few lengths are compiled
    capacity, room = padded + steps, steps
    if limit is not None:  # the last token is generated, but never read
        padded, capacity, room = min(padded, limit), min(capacity, limit), max(limit - longest, 1)
    prompts = np.stack([np.pad(text, (0, padded - len(text))) for text in texts])
    logits, state = _read(model, capacity, variables, prompts, lengths, *source)
    return logits, state, room


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
    model: nn.Module,
    max_length: int,
    variables: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    source: jax.Array | None,
    source_lengths: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """The logits [B, V] after each prompt, and the state."""
    if source is None:
        state = model.init_state(len(prompts), max_length)  # type: ignore[attr-defined]
    else:
        state = model.apply(variables, source, source_lengths, max_length, method="encode")
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
    seen: jax.Array,
    key: jax.Array,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """Tokens [B, steps] that follow `logits`; then the next logits, the state and the seen tokens."""

    def step(carry: tuple[jax.Array, Any, jax.Array], i: jax.Array) -> tuple[tuple[Any, Any, Any], jax.Array]:
        logits, state, seen = carry
        if sampling.repetition_penalty != 1:
            logits = penalised(logits.astype(jnp.float32), seen, sampling.repetition_penalty)
        tokens = choose(logits, sampling, jax.random.fold_in(key, i))
        if sampling.repetition_penalty != 1:
            seen = seen | jax.nn.one_hot(tokens, seen.shape[-1], dtype=bool)
        logits, state = model.apply(variables, tokens[:, None], state=state)
        return (logits[:, 0], state, seen), tokens

    (logits, state, seen), tokens = jax.lax.scan(step, (logits, state, seen), start + jnp.arange(steps))
    return tokens.T, logits, state, seen
