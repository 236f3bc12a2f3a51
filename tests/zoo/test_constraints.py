"""Which tokens are left: published examples, NumPy references over random rows with ties, and wrong settings."""

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Constraints, Sampling, filtered
from zoo.decode.constraints import constrained, repeating


def kept(probabilities, **options):
    """The probabilities of the tokens that are left, before they are normalised."""
    return np.exp(np.asarray(filtered(jnp.log(jnp.array(probabilities)), Sampling(**options))))


def test_top_p_on_published_examples():
    """Those of the test of top-p in transformers (tests/generation/test_logits_process.py)."""
    found = kept([[0.3, 0.1, 0.1, 0.5], [0.15, 0.3, 0.3, 0.25]], top_p=0.8)
    np.testing.assert_allclose(found, [[0.3, 0, 0, 0.5], [0, 0.3, 0.3, 0.25]], atol=1e-6)


def test_min_p_on_published_examples():
    """Those of the test of min-p in transformers."""
    rows = [[0.9, 0.0274, 0.047, 0.0274], [0.15, 0.3, 0.3, 0.25], [0.97, 0.01, 0.01, 0.01]]
    expected = [[0.9, 0, 0, 0], [0.15, 0.3, 0.3, 0.25], [0.97, 0, 0, 0]]
    np.testing.assert_allclose(kept(rows, min_p=0.1), expected, atol=1e-6)


def test_top_p_keeps_as_few_as_decimal_sums_need():
    """Probabilities and top_p in twentieths, whose sums in float32 miss their decimal values either way."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(300):
        cuts = np.sort(rng.choice(np.arange(1, 20), 3, replace=False))
        rows.append(np.diff(np.r_[0, cuts, 20]))
    rows = np.array(rows)
    for twentieths in range(1, 20):
        found = np.isfinite(filtered(jnp.log(jnp.array(rows / 20)), Sampling(top_p=twentieths / 20)))
        order = np.argsort(-rows, axis=1, kind="stable")
        sums = np.cumsum(np.take_along_axis(rows, order, 1), axis=1)
        fewest = 1 + (sums < twentieths).sum(axis=1)
        expected = np.zeros_like(found)
        np.put_along_axis(expected, order, np.arange(4) < fewest[:, None], 1)
        np.testing.assert_array_equal(found, expected)


def test_of_equally_probable_tokens_top_p_keeps_the_first():
    for n in (1, 2, 5, 6):
        found = np.isfinite(filtered(jnp.zeros((1, 6)), Sampling(top_p=(n - 0.5) / 6)))
        np.testing.assert_array_equal(found, [np.arange(6) < n])
    assert np.isfinite(filtered(jnp.zeros((1, 6)), Sampling(top_k=2))).all()  # as transformers


def test_min_p_keeps_tokens_on_its_boundary():
    for tenths in range(1, 10):
        rows = np.array([0.5, 0.5 * tenths / 10, 0.5 - 0.5 * tenths / 10 - 0.01, 0.01])
        assert kept(rows, min_p=tenths / 10)[1] > 0


def by_hand(scores, texts, constraints, end, new):
    """Loops over the tokens of each row."""
    scores = scores.astype(np.float64)
    for row, text in zip(scores, texts, strict=True):
        for token in set(text):
            row[token] = (
                row[token] / constraints.repetition_penalty
                if row[token] > 0
                else row[token] * constraints.repetition_penalty
            )
        row[list(constraints.banned)] = -np.inf
        if new < constraints.min_length:
            row[end] = -np.inf
        n = constraints.no_repeat_ngram
        if n:
            grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
            last = tuple(text[len(text) - n + 1 :]) if n > 1 else ()
            repeated = [token for token in range(len(row)) if len(text) >= n - 1 and (*last, token) in grams]
            left = row.copy()
            left[repeated] = -np.inf
            if np.isfinite(left).any():
                row[:] = left
        for token, place in ((constraints.forced_first, 0), (end, constraints.end_after)):
            if token is not None and place == new:
                row[:] = [0 if i == token else -np.inf for i in range(len(row))]
    return scores


def test_constraints_are_those_of_loops_over_tokens():
    rng = np.random.default_rng(1)
    for trial in range(120):
        size, rows = int(rng.integers(2, 6)), 4
        texts = [rng.integers(0, size, rng.integers(1, 12)).tolist() for _ in range(rows)]
        tokens = np.full((rows, 12), size - 1, np.int32)  # what lies beyond the length does not count
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        constraints = Constraints(
            repetition_penalty=float(rng.choice([0.5, 1.0, 2.0])),
            banned=rng.choice(size, rng.integers(0, size - 1), replace=False).tolist(),
            min_length=int(rng.integers(0, 3)),
            no_repeat_ngram=[None, 1, 2, 3, 13][trial % 5],
            forced_first=[None, None, size - 1][trial % 3],
            end_after=[None, None, 1, 2][trial % 4],
        )
        scores, end, new = rng.normal(size=(rows, size)).astype(np.float32), 0, int(rng.integers(0, 3))
        lengths = jnp.array([*map(len, texts)], jnp.int32)
        found = constrained(jnp.array(scores), constraints, end, new, jnp.array(tokens), lengths)
        np.testing.assert_allclose(found, by_hand(scores, texts, constraints, end, new), rtol=1e-6)


def test_a_published_penalty():
    """The test of the repetition penalty in transformers."""
    scores = np.full((2, 20), 1 / 20, np.float32)
    scores[0, 0], scores[1, 5] = -1 / 20, 4 / 20
    tokens, lengths = jnp.array([[0, 1], [5, 0]]), jnp.array([2, 2])
    found = constrained(jnp.array(scores), Constraints(repetition_penalty=2.0), None, 0, tokens, lengths)
    expected = scores.copy()
    expected[0, :2], expected[1, [0, 5]] = [-2 / 20, 1 / 40], [1 / 40, 4 / 40]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_published_ngrams():
    """The test of repeated n-grams in transformers."""
    tokens, lengths = jnp.array([[1, 1, 2, 1], [0, 1, 0, 1]]), jnp.array([4, 4])
    np.testing.assert_array_equal(repeating(tokens, lengths, 2, 3), [[False, True, True], [True, False, False]])
    np.testing.assert_array_equal(repeating(tokens, lengths, 3, 3), [[False, False, False], [True, False, False]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_repeat_ngram": 0}, "no-repeat-ngram must be at least 1, not 0"),
        ({"min_length": -1}, "min-length must be at least 0, not -1"),
        ({"end_after": 0}, "end-after must be at least 1, not 0"),
        ({"repetition_penalty": -1.0}, "repetition-penalty must be above 0, not -1.0"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(zoo.ZooError, match=message):
        Constraints(**options)
