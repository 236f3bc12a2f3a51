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

from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError


def check_tokens(model: Any, tokens: jax.Array, vocab_size: int, lengths: jax.Array | None = None) -> None:
    """ZooError unless tokens are integers [B, T] below the vocabulary's size and lengths are at most T.

    Values are unknown under a transformation, where only shapes are checked; `Inputs.encode` and the data sets give
    valid values.
    """
    name = type(model).__name__
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ZooError(f"{name} takes integer tokens [batch, time], not {tokens.dtype} {list(tokens.shape)}")
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        known = np.asarray(tokens)
        wrong = [int(token) for token in (known.min(), known.max()) if not 0 <= token < vocab_size]
        if wrong:
            raise ZooError(f"{name}: token {wrong[0]} is outside the vocabulary of {vocab_size}")
    check_lengths(model, tokens.shape[0], tokens.shape[1], lengths)


def check_lengths(model: Any, rows: int, steps: int, lengths: jax.Array | None) -> None:
    """ZooError unless lengths are integers [B] from 0 to `steps`."""
    name = type(model).__name__
    if lengths is None:
        return
    if np.shape(lengths) != (rows,):
        raise ZooError(f"{name} takes one length per row, [{rows}], not {list(np.shape(lengths))}")
    if not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)
        wrong = [int(n) for n in (known.min(), known.max()) if not 0 <= n <= steps]
        if wrong:
            raise ZooError(f"{name}: length {wrong[0]} is outside 0 to {steps}, the array's steps")


def check_source(model: Any, source: Any, lengths: jax.Array | None = None) -> None:
    """`check_tokens` for the source of an encoder-decoder, which may have its own `source_vocab_size`."""
    check_tokens(model, source, getattr(model, "source_vocab_size", None) or model.vocab_size, lengths)


def check_begun(model: Any, state: Any, source: jax.Array | None, source_lengths: jax.Array | None) -> None:
    """ZooError if an encoder-decoder gets both a state and a source, neither, or source lengths with a state."""
    if (state is None) == (source is None) or (source is None and source_lengths is not None):
        got = "both" if source is not None else "neither" if state is None else "a state and source_lengths"
        raise ZooError(f"{type(model).__name__} takes a source with its lengths, or a state from `encode`, not {got}")


def room(state: Any) -> int | None:
    """How many more tokens the caches of a state can hold; None if they do not grow. Under a transformation, as if they
    were empty."""
    paths = jax.tree_util.tree_leaves_with_path({name: value for name, value in state.items() if name != "source"})
    sizes = [leaf.shape[1] for path, leaf in paths if path[-1] == jax.tree_util.DictKey("key")]
    known = 0 if isinstance(state["position"], jax.core.Tracer) else int(np.max(state["position"], initial=0))
    return min(sizes) - known if sizes else None
