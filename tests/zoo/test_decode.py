"""Sampling: what may be drawn, what the seed fixes, and prompts of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Sampling, choose, filtered, sample, stream
from zoo.inputs.text import TextInputs
from zoo.run import Run

LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))


def allowed(**options):
    return np.flatnonzero(np.isfinite(filtered(LOGITS, Sampling(**options)))).tolist()


def test_top_k_keeps_the_k_most_probable():
    assert allowed(top_k=1) == [1]
    assert allowed(top_k=3) == [1, 3, 4]
    assert allowed(top_k=9) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_it():
    assert allowed(top_p=0.3) == [1]
    assert allowed(top_p=0.41) == [1, 3]
    assert allowed(top_p=0.8) == [1, 3, 4]
    assert allowed(top_p=1.0) == [0, 1, 2, 3, 4]


def test_draws_follow_the_probabilities_at_the_temperature():
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: choose(LOGITS, Sampling(temperature=0.5), key))(keys)
    expected = np.asarray(jax.nn.softmax(2 * LOGITS))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / len(keys), expected, atol=0.015)  # four deviations
    assert int(choose(LOGITS, Sampling(temperature=0), keys[0])) == 1


@pytest.fixture(scope="module")
def run():
    model = zoo.create_model("lstm_lm", vocab_size=5, hidden_size=16, num_layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return Run(model, jax.tree.map(lambda leaf: 3 * leaf, variables), TextInputs("char", "\nabcd", 8))


def test_the_greedy_answer_is_the_argmax_of_the_whole_sequence_each_time(run):
    prompts = np.array([[1, 2, 3], [4, 1, 1]])
    (tokens,) = sample(run.model, run.variables, prompts, 6, Sampling(temperature=0))
    whole = prompts
    for _ in range(6):
        logits = run.model.apply(run.variables, whole)
        whole = np.concatenate([whole, np.argmax(logits[:, -1:], axis=-1)], axis=1)
    np.testing.assert_array_equal(tokens, whole[:, 3:])


def test_prompts_of_several_lengths_answer_as_alone(run):
    prompts, lengths = np.array([[1, 2, 3, 4, 2], [4, 1, 0, 0, 0]]), np.array([5, 2])
    (tokens,) = sample(run.model, run.variables, prompts, 6, Sampling(temperature=0), lengths=lengths)
    for row, length in enumerate(lengths):
        (alone,) = sample(run.model, run.variables, prompts[row : row + 1, :length], 6, Sampling(temperature=0))
        np.testing.assert_array_equal(tokens[row], alone[0])


def test_the_seed_fixes_the_text_and_chunks_do_not_change_it(run):
    whole = zoo.generate(run, "ab", length=40, seed=3)
    assert len(whole) == 40
    assert whole == zoo.generate(run, "ab", length=40, seed=3)
    assert whole != zoo.generate(run, "ab", length=40, seed=4)
    pieces = list(stream(run, "ab", length=40, seed=3, chunk=7))
    assert "".join(pieces) == whole
    assert len(pieces) >= 6


def test_streamed_bytes_show_no_half_characters():
    model = zoo.create_model("rnn_lm", vocab_size=256, hidden_size=8, num_layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    loud = Run(model, jax.tree.map(lambda leaf: 5 * leaf, variables), TextInputs("byte", "", 8))
    pieces = list(stream(loud, "a", length=64, chunk=1))
    assert "".join(pieces) == zoo.generate(loud, "a", length=64)
    assert all(piece == piece.rstrip("\ufffd") for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "a prompt needs at least one token"),
        ({"prompt": "axb"}, "'x' is not among the 5 characters of the vocabulary"),
        ({"length": 0}, "number of tokens to generate must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0, not -1.0"),
        ({"top_k": 0}, "top-k must be at least 1, not 0"),
        ({"top_p": 1.5}, r"top-p must be in \(0, 1\], not 1.5"),
    ],
)
def test_wrong_options(run, options, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.generate(run, **{"prompt": "a", **options})


def test_tokens_outside_the_vocabulary_and_models_that_say_nothing(run):
    with pytest.raises(zoo.ZooError, match="token 5 is outside the vocabulary of 5"):
        list(sample(run.model, run.variables, np.array([[5]]), 3))
    with pytest.raises(zoo.ZooError, match="ResNet generates no text"):
        zoo.generate(zoo.load("resnet20"), "a")
