"""Sampling from a model of the sequence protocol; the loop over tokens is compiled.

The most probable token, or one drawn at a temperature from the `top_k` most probable (Fan et al. 2018), from the
smallest set whose probability reaches `top_p` (Holtzman et al. 2020), or from those at least `min_p` times as probable
as the most probable (Nguyen et al. 2024); `zoo.decode.constraints` exclude tokens before.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.decode.constraints import Constraints, check_constraints, constrained, in_float32
from zoo.errors import ZooError
from zoo.sequence import check_source
from zoo.transformer.layers import unscanned

ROUNDING = 4  # machine epsilons by which a sum of probabilities may miss its decimal value


@dataclasses.dataclass(frozen=True)
class Sampling(Constraints):
    """How a token is chosen from logits, and the token that ends a text. The fields of `Constraints` are keywords."""

    temperature: float = 1.0  # divides the logits; 0 takes the most probable token
    top_k: int | None = None  # draw from this many of the most probable
    top_p: float | None = None  # draw from the smallest set with this total probability
    min_p: float | None = None  # draw from those with this share of the highest probability
    end: int | None = dataclasses.field(default=None, kw_only=True)  # id of the token after which a row has ended

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ZooError(f"temperature must be a number of at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ZooError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ZooError(f"top-p must be in (0, 1], not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ZooError(f"min-p must be in [0, 1], not {self.min_p}")


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [..., V] in float32 (or wider) divided by the temperature, minus infinity for excluded tokens.

    Of tokens that are equally probable at the boundary, top-k keeps all, top-p the first that it needs.
    """
    logits = in_float32(logits) / (sampling.temperature or 1.0)
    rounding = ROUNDING * float(jnp.finfo(logits.dtype).eps)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        order = jnp.argsort(-logits, axis=-1)  # stable
        descending = jnp.take_along_axis(logits, order, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # total probability of the more probable tokens
        kept = (before < sampling.top_p - rounding).at[..., 0].set(True)
        logits = jnp.put_along_axis(logits, order, jnp.where(kept, descending, -jnp.inf), axis=-1, inplace=False)
    if sampling.min_p:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p) - rounding
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


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


class Progress(NamedTuple):
    """The carry of the loop over tokens, for B rows."""

    logits: jax.Array  # [B, V], of the next token
    state: Any  # of the model
    history: tuple[jax.Array, jax.Array] | None  # all tokens int32 [B, T], their number int32 [B]; if constraints need
    ended: jax.Array  # bool [B]


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
    num_samples: int = 1,
    log_probabilities: bool = False,
    seed: int = 0,
    chunk: int | None = None,
) -> Iterator[Any]:
    """At most `steps` tokens that continue each of the prompts int [B, T], `lengths[b]` tokens in row b.

    Yields int32 [B * num_samples, n], the samples of a prompt beside one another, `chunk` tokens at a time (fewer where
    a context is full), each from one dispatch of a compiled loop; by default all at once. Token i of a row depends on
    the seed, the row's number, its prompt and i, neither on the chunks nor on other rows. When a row has the context's
    `max_length` tokens, it continues from the last half of them; a prompt of that length is read whole for its first
    token. After `sampling.end` a row is padded with it, and when all rows have ended, generation stops.

    With `log_probabilities` yields pairs: the tokens, and their log probabilities float32 [B * num_samples, n], the
    model's own at temperature 1 without constraints; 0 for padding.

    An encoder-decoder needs a `source` int [B, S], `source_lengths[b]` tokens in row b, and its prompts are
    the beginnings of targets. It does not continue from half of a target: ZooError if `steps` exceeds its max_length.

    ZooError for an empty prompt, tokens outside the vocabulary, a prompt longer than max_length, and constraints that
    leave no token.
    """
    prompts, sampling = np.asarray(prompts), sampling or Sampling()
    lengths = np.full(len(prompts), prompts.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    check_prompts(model, prompts, lengths, steps)
    check_sources(model, source, source_lengths, int(lengths.max()) + steps)
    check_sampling(model, sampling, num_samples)
    model, variables = unscanned(model, variables)
    limit = getattr(model, "max_length", None)
    size = min(chunk or steps, steps, limit or steps)
    texts = [row[:length] for row, length in zip(prompts.astype(np.int32), lengths, strict=True)]
    begun, capacity = _begin(model, variables, texts, steps, (source, source_lengths))
    texts = [text for text in texts for _ in range(num_samples)]
    logits, state = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), begun)
    progress = Progress(logits, state, _history(sampling, texts, steps), jnp.zeros(len(texts), bool))
    advance = functools.partial(_continue, model, sampling, size, log_probabilities, variables)
    key, done, ended = jax.random.key(seed), 0, np.zeros(len(texts), bool)
    while done < steps and not ended.all():
        count = min(size, steps - done)
        if limit is not None:
            if done:
                progress = _restart(model, capacity, variables, progress, texts, ended)
            longest = max(len(text) for text, over in zip(texts, ended, strict=True) if not over)
            count = min(count, max(limit - longest, 1))
        drawn, scores, progress, counted = advance(progress, key, np.int32(done), np.int32(count))
        count = int(counted)
        tokens, ended = np.asarray(drawn)[:, :count], np.asarray(progress.ended)
        yield (tokens, np.asarray(scores)[:, :count]) if log_probabilities else tokens
        done += count
        if limit is not None:
            texts = [np.concatenate(pair) for pair in zip(texts, tokens, strict=True)]


def check_sampling(model: Any, sampling: Sampling, num_samples: int) -> None:
    """ZooError for constraints that leave no token, and for several samples of the most probable tokens."""
    check_constraints(sampling, model.vocab_size, sampling.end)
    if num_samples < 1:
        raise ZooError(f"num_samples must be at least 1, not {num_samples}")
    if num_samples > 1 and sampling.temperature == 0:
        raise ZooError(f"{num_samples} samples at temperature 0 are all the same: give a temperature above 0")


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


def _history(sampling: Sampling, texts: list[np.ndarray], steps: int) -> tuple[jax.Array, jax.Array] | None:
    """The texts with room for `steps` more tokens, int32 [B, T], and their lengths, where constraints need them."""
    if not sampling.need_history:
        return None
    longest = max(map(len, texts))
    return jnp.asarray(_stacked(texts, longest + steps)), jnp.array([*map(len, texts)], jnp.int32)


def _stacked(texts: list[np.ndarray], length: int) -> np.ndarray:
    return np.stack([np.pad(text, (0, length - len(text))) for text in texts])


def _begin(
    model: nn.Module, variables: Any, texts: list[np.ndarray], steps: int, source: Any
) -> tuple[tuple[jax.Array, Any], int]:
    """The logits after the texts and the state; and how many tokens its caches hold."""
    lengths, limit = np.array([len(text) for text in texts], np.int32), getattr(model, "max_length", None)
    padded = 1 << (int(lengths.max()) - 1).bit_length()  # so that few lengths are compiled
    capacity = padded + steps
    if limit is not None:
        padded, capacity = min(padded, limit), min(capacity, limit)
    return _read(model, capacity, variables, _stacked(texts, padded), lengths, *source), capacity


def _restart(
    model: Any, capacity: int, variables: Any, progress: Progress, texts: list[np.ndarray], ended: np.ndarray
) -> Progress:
    """Cuts the texts that fill the context to its last half, and reads these rows anew."""
    limit = model.max_length
    full = [row for row, text in enumerate(texts) if len(text) >= limit and not ended[row]]
    if not full:
        return progress
    for row in full:
        texts[row] = texts[row][-max(1, limit // 2) :]
    rows = np.resize(full, 1 << (len(full) - 1).bit_length())  # so that few sizes are compiled
    return _reread(model, capacity, variables, progress, np.stack([texts[row] for row in rows]), rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reread(
    model: nn.Module, capacity: int, variables: Any, progress: Progress, prompts: jax.Array, rows: jax.Array
) -> Progress:
    lengths = jnp.full(len(prompts), prompts.shape[1], jnp.int32)
    new = _read(model, capacity, variables, prompts, lengths, None, None)
    held = progress.logits, progress.state
    logits, state = jax.tree.map(lambda leaf, by: leaf.at[rows].set(by), held, new)
    return progress._replace(logits=logits, state=state)


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _continue(
    model: nn.Module,
    sampling: Sampling,
    size: int,
    scored: bool,
    variables: Any,
    progress: Progress,
    key: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array | None, Progress, jax.Array]:
    """The next `count` tokens, fewer if all rows end, in [B, size]; their log probabilities; and how many they are."""
    shape = len(progress.logits), size
    tokens = jnp.full(shape, sampling.end or 0, jnp.int32)
    scores = jnp.zeros(shape, in_float32(progress.logits).dtype) if scored else None

    def step(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        i, tokens, scores, (logits, state, history, ended) = loop
        chosen = _next(logits, history, sampling, start + i, jax.random.fold_in(key, start + i))
        if sampling.end is not None:
            chosen = jnp.where(ended, jnp.int32(sampling.end), chosen)
        tokens = tokens.at[:, i].set(chosen)
        if scores is not None:
            of_all = jax.nn.log_softmax(in_float32(logits))
            of_chosen = jnp.take_along_axis(of_all, chosen[:, None], axis=1)[:, 0]
            scores = scores.at[:, i].set(jnp.where(ended, 0, of_chosen))
        if sampling.end is not None:
            ended |= chosen == sampling.end
        if history is not None:
            held, lengths = history
            history = held.at[jnp.arange(len(held)), lengths].set(chosen), lengths + 1
        logits, state = model.apply(variables, chosen[:, None], state=state)
        return i + 1, tokens, scores, Progress(logits[:, 0], state, history, ended)

    def unfinished(loop: tuple[Any, ...]) -> jax.Array:
        more = loop[0] < count
        return more if sampling.end is None else more & ~jnp.all(loop[3].ended)

    done, tokens, scores, progress = jax.lax.while_loop(
        unfinished, step, (jnp.zeros((), jnp.int32), tokens, scores, progress)
    )
    return tokens, scores, progress, done


def _next(logits: jax.Array, history: Any, sampling: Sampling, new: jax.Array, key: jax.Array) -> jax.Array:
    """The next token int32 [B], the one after `new` generated ones."""
    if sampling.active:
        logits = constrained(in_float32(logits), sampling, sampling.end, new, *(history or (None, None)))
    return choose(logits, sampling, key)
