"""Every encoder-decoder, recurrent or not, follows the protocol of zoo.sequence."""

import jax
import numpy as np
import pytest
from sources import (
    LENGTHS,
    SEQ2SEQ,
    SOURCE,
    TOKENS,
    TOLERANCE,
    TRANSFORMERS,
    B,
    T,
    encoded,
    forced,
    kinds,
    step,
    tiny,
    whole,
)


@pytest.mark.parametrize("kind", kinds((*SEQ2SEQ, *TRANSFORMERS)))
@pytest.mark.parametrize("pieces", [[1] * T, [2, 1, 4]])
def test_token_by_token_in_chunks_and_all_at_once(kind, pieces):
    model, variables = tiny(kind)
    state, seen, start = encoded(model, variables, T), [], 0
    source = state["source"]
    for size in pieces:
        logits, state = step(model, variables, TOKENS[:, start : start + size], state)
        seen.append(logits)
        start += size
    np.testing.assert_allclose(np.concatenate(seen, axis=1), whole(kind), **TOLERANCE)
    assert state["position"].tolist() == [T] * B
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))
    jax.tree.map(np.testing.assert_array_equal, state["source"], source)
    assert state["source"]["lengths"].tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("kind", kinds((*SEQ2SEQ, *TRANSFORMERS)))
def test_ragged_rows_go_on_where_their_tokens_end(kind):
    model, variables = tiny(kind)
    lengths = np.array([7, 0, 4], np.int32)
    logits, state = step(model, variables, TOKENS, encoded(model, variables, 10), lengths)
    assert state["position"].tolist() == lengths.tolist()
    more, _ = step(model, variables, TOKENS[:, :3], state)
    for row, length in enumerate(lengths):
        own = np.concatenate([TOKENS[row, :length], TOKENS[row, :3]])[None]
        source = SOURCE[row : row + 1, : LENGTHS[row]]  # also alone, without its padding
        alone = forced(model, variables, own, source)
        np.testing.assert_allclose(logits[row, :length], alone[0, :length], **TOLERANCE)
        np.testing.assert_allclose(more[row], alone[0, length:], **TOLERANCE)


@pytest.mark.parametrize("kind", kinds((*SEQ2SEQ, *TRANSFORMERS)))
def test_what_pads_a_source_is_not_read_and_what_is_in_it_is(kind):
    model, variables = tiny(kind)
    padding, word = SOURCE.copy(), SOURCE.copy()
    padding[1, 2:], padding[2, 3:] = 1, 0
    word[:, 1] = (word[:, 1] + 1) % 11
    np.testing.assert_array_equal(forced(model, variables, TOKENS, padding, LENGTHS), whole(kind))
    moved = np.abs(forced(model, variables, TOKENS, word, LENGTHS) - whole(kind))
    assert (moved.max(axis=(1, 2)) > 1e-3).all()
