"""The protocol of causal models over tokens: explicit state, no hidden cache.

`model.init_state(batch_size, max_length)` is zeros and needs no variables. `model.apply(variables, tokens [B, T],
state=None, lengths=None, train=False)` returns logits [B, T, vocab_size], or `(logits, state)` exactly when a state was
given. Row b consumes its first `lengths[b]` tokens; the returned state is the one after them. Every leaf of a state has
the batch on axis 0, `position` [B] included. Token by token, in chunks and all at once give the same logits.

A model whose state has a fixed size has the class attribute `recurrent = True`; one that reads a limited number of
tokens has a field `max_length`.

An encoder-decoder has `encode` instead of `init_state`: its state starts from a source, with
`source_lengths[b]` tokens in row b (default: all).

    state = model.apply(variables, source, source_lengths, max_length, method="encode")
    logits, state = model.apply(variables, tokens, state, lengths, train)
    logits = model.apply(variables, tokens, source=source, source_lengths=source_lengths, train=True, rngs=rngs)

`encode` reads the source once and makes room for `max_length` tokens. The part of the state under `"source"` never
changes: the encoded source and its lengths [B]. The last form is for training: all tokens at once, without a cache,
with the same logits. Exactly one of state and source is given; only `init` may go without both. The first token marks
the beginning of a target; the task chooses it. Source and target share one vocabulary unless the model has a field
`source_vocab_size`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.arrays import named_leaves
from zoo.errors import ZooError


def check_tokens(model: Any, tokens: jax.Array, vocab_size: int, lengths: jax.Array | None = None) -> None:
    """ZooError unless tokens are integers [B, T] below the vocabulary's size and lengths are at most T.

    Values are unknown under a transformation, where only shapes are checked; `Inputs.encode` and the data sets give
    valid values.
    """
    name = type(model).__name__
    if np.ndim(tokens) != 2 or not _of_kind(tokens, np.integer):
        raise ZooError(f"{name} takes integer tokens [batch, time], not {described(tokens)}")
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        known = np.asarray(tokens)
        wrong = [int(token) for token in (known.min(), known.max()) if not 0 <= token < vocab_size]
        if wrong:
            raise ZooError(f"{name}: token {wrong[0]} is outside the vocabulary of {vocab_size}")
    check_lengths(model, tokens.shape[0], tokens.shape[1], lengths)


def check_beside(model: Any, name: str, array: jax.Array | None, tokens: jax.Array, kinds: int | None = None) -> None:
    """ZooError unless an input beside tokens [B, T] is None, or integers of the same shape; and below `kinds`."""
    if array is None:
        return
    if np.shape(array) != tokens.shape or not _of_kind(array, np.integer):
        expected = f"integers {list(tokens.shape)}, one for each token"
        raise ZooError(f"{type(model).__name__} takes {name} that are {expected}, not {described(array)}")
    if kinds is not None and not isinstance(array, jax.core.Tracer) and array.size:
        known = np.asarray(array)
        wrong = [int(n) for n in (known.min(), known.max()) if not 0 <= n < kinds]
        if wrong:
            raise ZooError(f"{type(model).__name__}: {wrong[0]} in {name} is outside 0 to {kinds - 1}")


def check_series(model: Any, x: jax.Array, lengths: jax.Array | None = None) -> None:
    """ZooError unless x is an array [B, T, F] and lengths are at most T."""
    if not hasattr(x, "dtype") or x.ndim != 3:
        raise ZooError(f"{type(model).__name__} takes series [batch, time, features], not {described(x)}")
    check_lengths(model, x.shape[0], x.shape[1], lengths)


def check_lengths(model: Any, rows: int, steps: int, lengths: jax.Array | None) -> None:
    """ZooError unless lengths are an array of integers [B] from 0 to `steps`."""
    name = type(model).__name__
    if lengths is None:
        return
    array = lengths if hasattr(lengths, "dtype") else jnp.asarray(lengths)
    if array.shape != (rows,):
        raise ZooError(f"{name} takes one length per row, [{rows}], not {list(array.shape)}")
    if not _of_kind(array, np.integer):
        raise ZooError(f"{name} takes integer lengths, not {described(array)}")
    if not isinstance(array, jax.core.Tracer) and array.size:
        known = np.asarray(array)
        wrong = [int(n) for n in (known.min(), known.max()) if not 0 <= n <= steps]
        if wrong:
            raise ZooError(f"{name}: length {wrong[0]} is outside 0 to {steps}, the array's steps")
    if array is not lengths:
        raise ZooError(f"{name} takes lengths as an array of integers, not as a {type(lengths).__name__}")


def check_room(model: Any, tokens: int) -> None:
    """ZooError if `tokens` are more than the model's `max_length`, or a symbolic number that may be."""
    limit = model.max_length
    try:
        fits = tokens <= limit
    except jax.errors.InconclusiveDimensionOperation:
        raise ZooError(
            f"{type(model).__name__} reads at most {limit} tokens; "
            f"give the symbolic length {tokens} the constraint '{tokens} <= {limit}'"
        ) from None
    if not fits:
        raise ZooError(f"{tokens} tokens are more than the model's max_length of {limit}")


def check_state(model: Any, state: Any, like: Callable[[], Any]) -> None:
    """ZooError unless `state` has the structure, shapes and kinds of numbers of the one that `like()` returns."""
    wrong = _difference(state, like) if isinstance(state, Mapping) else f"is a {type(state).__name__}"
    if wrong:
        begin = "init_state" if hasattr(model, "init_state") else "encode"
        raise ZooError(f"the state {wrong}; {type(model).__name__} takes one from `{begin}` or from its last call")


def _difference(state: Mapping[str, Any], like: Callable[[], Any]) -> str:
    """The first difference between a state and the one that `like()` returns; empty if there is none."""
    expected, found = named_leaves(jax.eval_shape(like)), named_leaves(state)
    for path, leaf in expected.items():
        if path not in found:
            return f"has no {path} {described(leaf)}"
        kind = jnp.inexact if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.integer
        if np.shape(found[path]) != leaf.shape or not _of_kind(found[path], kind):
            return f"has {path} {described(found[path])}, not {described(leaf)}"
    extra = sorted(found.keys() - expected.keys())
    return f"has an unexpected {extra[0]} {described(found[extra[0]])}" if extra else ""


def described(x: Any) -> str:
    """An array's dtype and shape; the type of anything else."""
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "dtype") else f"a {type(x).__name__}"


def _of_kind(x: Any, kind: Any) -> bool:
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, kind))


def check_source(model: Any, source: Any, lengths: jax.Array | None = None) -> None:
    """`check_tokens` for the source of an encoder-decoder, which may have its own `source_vocab_size`."""
    check_tokens(model, source, getattr(model, "source_vocab_size", None) or model.vocab_size, lengths)


def check_begun(model: Any, state: Any, source: jax.Array | None, source_lengths: jax.Array | None) -> None:
    """ZooError if an encoder-decoder gets both a state and a source, neither, or source lengths with a state."""
    if (state is None) == (source is None) or (source is None and source_lengths is not None):
        got = "both" if source is not None else "neither" if state is None else "a state and source_lengths"
        raise ZooError(f"{type(model).__name__} takes a source with its lengths, or a state from `encode`, not {got}")


def position_after(state: Any, tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The position int32 [B] of a state after tokens [B, T], of which row b consumes `lengths[b]`."""
    return state["position"] + jnp.asarray(tokens.shape[1] if lengths is None else lengths, jnp.int32)


def cache_size(state: Any) -> int | None:
    """How many tokens the caches of a state can hold; None if they do not grow."""
    own = {name: leaf for name, leaf in named_leaves(state).items() if not name.startswith("source/")}
    return min((leaf.shape[1] for name, leaf in own.items() if name.endswith("/key") and leaf.ndim > 1), default=None)


def source_size(state: Any) -> int:
    """How many tokens the encoded source of a state has, padding included; 0 if only its lengths are kept."""
    leaves = jax.tree.leaves(state.get("source"))
    return next((leaf.shape[1] for leaf in leaves if np.ndim(leaf) > 1), 0)


def room(state: Any) -> int | None:
    """How many more tokens the caches of a state can hold; None if they do not grow. Under a transformation, as if they
    were empty."""
    known = 0 if isinstance(state["position"], jax.core.Tracer) else int(np.max(state["position"], initial=0))
    size = cache_size(state)
    return None if size is None else size - known
