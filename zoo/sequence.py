"""The protocol that every causal model over tokens follows: an explicit state, no hidden cache.

`model.init_state(batch_size, max_length)` is zeros and needs no variables. `model.apply(variables, tokens [B, T],
state=None, lengths=None, train=False)` returns logits [B, T, vocabulary], or `(logits, state)` exactly when a state was
given. Row b takes its first `lengths[b]` tokens; its state stands after them. Every leaf of a state has the batch on
axis 0, `position` [B] included. Token by token, in chunks and all at once give the same logits.

A model whose state does not grow says `recurrent = True`; one that reads only so many tokens has a field `max_length`.
"""

from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError


def check_tokens(model: Any, tokens: jax.Array, vocab_size: int, lengths: jax.Array | None = None) -> None:
    """ZooError for tokens that are no [B, T] of integers below the vocabulary's size, and for lengths beyond T.

    Under a transformation values are not known and only shapes are checked; the inputs' `encode` and the data sets give
    nothing else.
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
    """ZooError for lengths that are no [B] of integers from 0 to `steps`."""
    name = type(model).__name__
    if lengths is None:
        return
    if np.shape(lengths) != (rows,):
        raise ZooError(f"{name} takes one length a row, [{rows}], not {list(np.shape(lengths))}")
    if not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)
        wrong = [int(n) for n in (known.min(), known.max()) if not 0 <= n <= steps]
        if wrong:
            raise ZooError(f"{name}: length {wrong[0]} is outside 0 to {steps}, the array's steps")
