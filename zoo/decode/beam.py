"""Beam search over a model of the sequence protocol, compiled as one loop, for many sources at once.

Each row keeps the `beam_size` most probable prefixes (beams). Every step extends them by all tokens. Extensions by the
token `end` among the `beam_size` best are complete and set aside; the best of the others are the next beams.

By default (`early_stopping=None`) a row is done when as many targets are complete as it has beams and no beam is ahead
of the best of them (so that one beam is greedy decoding), when no beam can still beat the worst of its `num_best`, or
after `max_length` tokens, when its beams are complete as they are. The other values are those of Hugging Face's
transformers, which keeps the `beam_size` best complete targets: True, a row is done when it has so many; "never", when
no beam can still beat the worst of them; False, when the best beam, as long as it is now, does not beat the worst.

Complete targets are ranked as in Wu et al. 2016 (arXiv:1609.08144), equation 14 (`length_penalty_form="gnmt"`): the log
probability divided by ((5 + n) / 6)^length_penalty, with n tokens including `end`; plus coverage_penalty times the sum
over source positions of log(min(attention to the position, 1)). The form "length" divides by n^length_penalty, as
transformers does.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.decode.constraints import Constraints, check_constraints, constrained, in_float32
from zoo.errors import ZooError
from zoo.sequence import check_source, room
from zoo.transformer.layers import unscanned

EarlyStopping = bool | Literal["never"] | None
LengthPenaltyForm = Literal["gnmt", "length"]
LEAST_COVERAGE = 1e-6  # minimum attention to a source position, for its logarithm


class Beams(NamedTuple):
    """The best targets of each row, best first; missing ones have a score of minus infinity."""

    tokens: jax.Array  # int32 [B, num_best, max_length]; `end` after the last
    lengths: jax.Array  # int32 [B, num_best], of the tokens before `end`
    scores: jax.Array  # float32 [B, num_best]; float64 for a model in float64


class Settings(NamedTuple):
    """Settings that are compiled into the loop."""

    end: int
    max_length: int
    beam_size: int = 5
    length_penalty: float = 0.6
    coverage_penalty: float = 0.0
    num_best: int = 1
    length_penalty_form: LengthPenaltyForm = "gnmt"
    early_stopping: EarlyStopping = None
    constraints: Constraints = Constraints()


class Search(NamedTuple):
    """The carry of the loop: B rows, K beams each, targets of at most T tokens."""

    step: jax.Array  # number of tokens in the beams
    state: Any  # of the model, B * K rows
    last: jax.Array  # int32 [B, K], the token to read next
    tokens: jax.Array  # int32 [B, K, T]
    scores: jax.Array  # float32 [B, K], log probabilities
    coverage: jax.Array | None  # float32 [B, K, S], sum of the attention to each source position
    ended: Beams  # the best K complete targets
    num_ended: jax.Array  # int32 [B]
    done: jax.Array  # bool [B]


def beam_search(
    model: nn.Module,
    variables: Any,
    state: Any,
    first: Any,
    *,
    end: int,
    max_length: int,
    beam_size: int = 5,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    num_best: int = 1,
    length_penalty_form: LengthPenaltyForm = "gnmt",
    early_stopping: EarlyStopping = None,
    **constraints: Any,
) -> Beams:
    """The best targets, of at most `max_length` tokens, that continue a state of B rows and the tokens `first` [B].

    The state comes from `encode`, or from `init_state` and a prompt, with room for `max_length` more tokens. Rows are
    independent. `constraints` are fields of `zoo.decode.Constraints`; tokens before `first` do not count for them. They
    exclude tokens without making the others more probable. ZooError for numbers out of range, a state without that
    room, and a coverage penalty for a model without attention over a source.
    """
    settings = Settings(
        end, max_length, beam_size, length_penalty, coverage_penalty, num_best,
        length_penalty_form, early_stopping, Constraints(**constraints),
    )  # fmt: skip
    check_settings(model, settings)
    holds = room(state)
    if holds is not None and max_length > holds:
        raise ZooError(f"max_length {max_length} is more than the {holds} tokens that the state has room for")
    rows = len(state["position"])
    if np.shape(first) != (rows,):
        raise ZooError(f"first must be one token per row of the state, [{rows}], not {list(np.shape(first))}")
    model, variables = unscanned(model, variables)
    return _search(model, settings, variables, state, jnp.asarray(first, jnp.int32))


def decode_sources(
    model: nn.Module,
    variables: Any,
    source: Any,
    source_lengths: Any = None,
    *,
    first: Any,
    end: int,
    max_length: int,
    beam_size: int = 5,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    num_best: int = 1,
    length_penalty_form: LengthPenaltyForm = "gnmt",
    early_stopping: EarlyStopping = None,
    **constraints: Any,
) -> Beams:
    """`beam_search` from sources int [B, S], `source_lengths[b]` tokens in row b, in one compiled call.

    `first` is the first token of every target, or one per row [B]. A source may be empty: attention to it is zero.
    """
    if not hasattr(model, "encode") or not hasattr(model, "vocab_size"):
        raise ZooError(f"{type(model).__name__} has no encoder for a source")
    settings = Settings(
        end, max_length, beam_size, length_penalty, coverage_penalty, num_best,
        length_penalty_form, early_stopping, Constraints(**constraints),
    )  # fmt: skip
    check_settings(model, settings)
    check_source(model, np.asarray(source), source_lengths)
    if source_lengths is None:
        source_lengths = np.full(len(source), np.shape(source)[1], np.int32)
    first = np.broadcast_to(np.asarray(first, np.int32), len(source))
    model, variables = unscanned(model, variables)
    return _encode_and_search(model, settings, variables, source, source_lengths, first)


def check_settings(model: Any, settings: Settings) -> None:
    """ZooError for numbers out of range."""
    limit = getattr(model, "max_length", None)
    for name in ("max_length", "beam_size", "num_best"):
        if getattr(settings, name) < 1:
            raise ZooError(f"{name} must be at least 1, not {getattr(settings, name)}")
    for name in ("length_penalty", "coverage_penalty"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ZooError(f"{name} must be a number of at least 0, not {getattr(settings, name)}")
    if settings.num_best > settings.beam_size:
        raise ZooError(f"num_best {settings.num_best} is more than beam_size {settings.beam_size}")
    if settings.length_penalty_form not in ("gnmt", "length"):
        raise ZooError(f"length_penalty_form must be gnmt or length, not {settings.length_penalty_form!r}")
    if settings.early_stopping not in (None, True, False, "never"):
        raise ZooError(f"early_stopping must be True, False, 'never' or None, not {settings.early_stopping!r}")
    check_constraints(settings.constraints, model.vocab_size, settings.end)
    if limit is not None and settings.max_length > limit:
        raise ZooError(f"max_length {settings.max_length} is more than the model's max_length of {limit}")


def source_attention(features: Any) -> jax.Array:
    """The attention of each target token over the source, float32 (or wider) [B, T, S], from the collection `features`.

    A recurrent decoder's `attention`, or the mean of `cross/weights` over a Transformer's layers and heads. ZooError if
    there is none.
    """
    if "attention" in features:
        return in_float32(features["attention"])
    found = [
        jnp.mean(in_float32(leaf), axis=1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(features)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("cross/weights")
    ]
    if not found:
        raise ZooError("the model has no attention over a source, which coverage penalties and attention plots need")
    return sum(found[1:], found[0]) / len(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode_and_search(
    model: nn.Module, settings: Settings, variables: Any, source: jax.Array, lengths: jax.Array, first: jax.Array
) -> Beams:
    state = model.apply(variables, source, lengths, settings.max_length, method="encode")
    return _search(model, settings, variables, state, first)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(model: nn.Module, settings: Settings, variables: Any, state: Any, first: jax.Array) -> Beams:
    rows, beams, length = len(first), settings.beam_size, settings.max_length
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), state)
    nothing = Beams(
        jnp.full((rows, beams, length), settings.end, jnp.int32),
        jnp.zeros((rows, beams), jnp.int32),
        jnp.full((rows, beams), -jnp.inf, dtype_of(model)),
    )
    search = Search(
        step=jnp.zeros((), jnp.int32),
        state=state,
        last=jnp.repeat(first[:, None], beams, axis=1),
        tokens=nothing.tokens,
        scores=jnp.where(jnp.arange(beams) == 0, 0, nothing.scores),  # the beams are equal at first: keep one
        coverage=_no_coverage(model, variables, state, rows) if settings.coverage_penalty else None,
        ended=nothing,
        num_ended=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
    )
    search = lax.while_loop(
        lambda search: (search.step < length) & ~jnp.all(search.done),
        functools.partial(_step, model, settings, variables, first),
        search,
    )
    scores = jnp.where(search.done[:, None], -jnp.inf, ranked(settings, search.scores, length, search.coverage))
    cut = Beams(search.tokens, jnp.full((rows, beams), length, jnp.int32), scores)
    return _best(settings.num_best, settings.end, search.ended, cut)


def _step(model: nn.Module, settings: Settings, variables: Any, first: jax.Array, search: Search) -> Search:
    """Extends every beam by one token."""
    (rows, beams), end, n = search.scores.shape, settings.end, search.step + 1
    logits, state, attention = _read(model, variables, search.state, search.last, search.coverage is not None)
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if settings.constraints.active:
        logits, log_z = _constrained(settings, first, search, logits - log_z), jnp.zeros_like(log_z)
    # Of the best 2 K extensions at least K do not end, since each beam has one extension that ends.
    each = min(2 * beams, logits.shape[-1])
    best, tokens = lax.top_k(logits, each)
    totals = search.scores[..., None] + best - log_z
    totals, index = lax.top_k(totals.reshape(rows, -1), min(2 * beams, beams * each))
    parent, token = index // each, jnp.take_along_axis(tokens.reshape(rows, -1), index, axis=1)
    tokens = _of(search.tokens, parent).at[:, :, search.step].set(token)
    coverage = search.coverage
    if coverage is not None and attention is not None:
        coverage = _of(coverage + attention, parent)

    ends = token == end
    if settings.early_stopping is not None:
        ends |= n == settings.max_length
    scores = ranked(settings, totals, n, coverage)
    scores = jnp.where(ends & (jnp.arange(token.shape[1]) < beams) & ~search.done[:, None], scores, -jnp.inf)
    num_ended = search.num_ended + jnp.sum(jnp.isfinite(scores), axis=1, dtype=jnp.int32)
    lengths = jnp.where(token == end, search.step, n)
    ended = _best(beams, end, search.ended, Beams(tokens, lengths, scores))

    totals, live = lax.top_k(jnp.where(ends, -jnp.inf, totals), beams)
    coverage = None if coverage is None else _of(coverage, live)
    parent = _of(parent, live)
    if beams > 1:
        flat = (jnp.arange(rows)[:, None] * beams + parent).reshape(-1)
        moved = {name: value for name, value in state.items() if name != "source"}
        state = {**state, **jax.tree.map(lambda leaf: leaf[flat], moved)}
    return Search(
        step=n,
        state=state,
        last=_of(token, live),
        tokens=_of(tokens, live),
        scores=totals,
        coverage=coverage,
        ended=ended,
        num_ended=num_ended,
        done=search.done | _finished(settings, n, totals, coverage, ended, num_ended),
    )


def _constrained(settings: Settings, first: jax.Array, search: Search, scores: jax.Array) -> jax.Array:
    """Log probabilities [B, K, V] under the constraints."""
    rows, beams, size = scores.shape
    tokens = jnp.concatenate([jnp.repeat(first[:, None, None], beams, axis=1), search.tokens], axis=2)
    flat = tokens.reshape(rows * beams, -1), jnp.full((rows * beams,), search.step + 1, jnp.int32)
    flat_scores = scores.reshape(rows * beams, size)
    return constrained(flat_scores, settings.constraints, settings.end, search.step, *flat).reshape(scores.shape)


def _finished(
    settings: Settings, n: jax.Array, totals: jax.Array, coverage: jax.Array | None, ended: Beams, num_ended: jax.Array
) -> jax.Array:
    """Whether a row is done after n tokens, bool [B]; its beams have the log probabilities [B, K]."""
    if settings.early_stopping is None:
        behind = jnp.max(ranked(settings, totals, n, coverage), axis=1) <= ended.scores[:, 0]
        hopeless = possible(settings, totals[:, 0]) <= ended.scores[:, settings.num_best - 1]
        return ((num_ended >= settings.beam_size) & behind) | hopeless
    worst = ended.scores[:, -1]  # minus infinity until there are as many as beams
    last = n == settings.max_length
    if settings.early_stopping is True:
        return last | jnp.isfinite(worst)
    never = settings.early_stopping == "never"
    best = possible(settings, totals[:, 0]) if never else ranked(settings, totals[:, 0], n, None)
    return last | (best <= worst)


def dtype_of(model: Any) -> Any:
    """The dtype of log probabilities: the model's, at least float32."""
    return jnp.promote_types(getattr(model, "dtype", None) or jnp.float32, jnp.float32)


def _read(
    model: nn.Module, variables: Any, state: Any, tokens: jax.Array, attends: bool
) -> tuple[jax.Array, Any, jax.Array | None]:
    """Logits [B, K, V] after tokens [B, K], in `dtype_of` the model; the state; on request the attention [B, K, S]."""
    out, changed = model.apply(variables, tokens.reshape(-1, 1), state, mutable=["features"] if attends else [])
    (logits, state), attention = out, None
    if attends:
        attention = source_attention(changed.get("features", {})).reshape(*tokens.shape, -1)
    return logits.astype(dtype_of(model)).reshape(*tokens.shape, -1), state, attention


def _no_coverage(model: nn.Module, variables: Any, state: Any, rows: int) -> jax.Array:
    """Zeros [B, K, S], and ones for rows without a source, so that its coverage costs nothing."""
    lengths = state["source"]["lengths"].reshape(rows, -1) if "source" in state else jnp.zeros((rows, 1), jnp.int32)
    read = functools.partial(_read, model, attends=True)
    attention = jax.eval_shape(read, variables, state, jnp.zeros_like(lengths))[2]
    return (jnp.arange(attention.shape[-1]) >= lengths[..., None]).astype(attention.dtype)


def ranked(settings: Settings, scores: jax.Array, n: Any, coverage: jax.Array | None) -> jax.Array:
    """The ranking score of targets of n tokens, from their log probabilities [B, K]."""
    n = jnp.asarray(n, scores.dtype)
    n = (5 + n) / 6 if settings.length_penalty_form == "gnmt" else n
    scores = scores / n**settings.length_penalty
    if coverage is None:
        return scores
    covered = jnp.log(jnp.clip(coverage, LEAST_COVERAGE, 1))
    return scores + settings.coverage_penalty * jnp.sum(covered, axis=-1)


def possible(settings: Settings, scores: jax.Array) -> jax.Array:
    """An upper bound of the score of any continuation of beams with these log probabilities."""
    return ranked(settings, scores, settings.max_length, None)


def _of(leaf: jax.Array, index: jax.Array) -> jax.Array:
    """leaf [B, N, ...] at index [B, M]: [B, M, ...]."""
    return jnp.take_along_axis(leaf, index.reshape(*index.shape, *[1] * (leaf.ndim - 2)), axis=1)


def _best(n: int, end: int, held: Beams, new: Beams) -> Beams:
    """The n best of both; among equals the earlier ones come first."""
    tokens, lengths, scores = (jnp.concatenate(pair, axis=1) for pair in zip(held, new, strict=True))
    scores, index = lax.top_k(scores, n)
    some = jnp.isfinite(scores)
    tokens = jnp.where(some[..., None], _of(tokens, index), end)
    return Beams(tokens, jnp.where(some, _of(lengths, index), 0), scores)
