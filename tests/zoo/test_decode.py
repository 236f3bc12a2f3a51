"""Sampling: what may be drawn, what the seed fixes, and prompts of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Sampling, choose, filtered, sample, stream
from zoo.decode.constraints import penalised
from zoo.inputs.text import TextInputs
from zoo.registry import abstract_variables
from zoo.run import Run
from zoo.transformer.layers import stacked

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


def test_min_p_keeps_those_of_a_share_of_the_first():
    assert allowed(min_p=0.9) == [1]
    assert allowed(min_p=0.7) == [1, 3]
    assert allowed(min_p=0.2) == [0, 1, 3, 4]
    assert allowed(min_p=0.0) == [0, 1, 2, 3, 4]


def test_a_penalty_makes_seen_tokens_less_probable():
    logits, seen = jnp.array([[2.0, -2.0, 2.0, -2.0]]), jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(penalised(logits, seen, 2.0), [[1, -4, 2, -2]])


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


def test_a_penalty_counts_the_prompt_and_what_was_said(run):
    (tokens,) = sample(run.model, run.variables, np.array([[1, 2]]), 8, Sampling(temperature=0, repetition_penalty=3.0))
    (plain,) = sample(run.model, run.variables, np.array([[1, 2]]), 8, Sampling(temperature=0))
    whole = [1, 2]
    for _ in range(8):
        logits = np.array(run.model.apply(run.variables, np.array([whole]))[0, -1])
        for token in set(whole):
            logits[token] = logits[token] / 3 if logits[token] > 0 else logits[token] * 3
        whole.append(int(logits.argmax()))
    assert tokens[0].tolist() == whole[2:]
    assert plain[0].tolist() != whole[2:]


@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_a_text_ends_before_a_stop_string(run, chunk):
    whole = zoo.generate(run, "ab", length=40, seed=3)
    stop = whole[10:13]
    expected = whole[: whole.find(stop)]
    assert zoo.generate(run, "ab", length=40, seed=3, stop=["zz", stop]) == expected
    pieces = list(stream(run, "ab", length=40, seed=3, chunk=chunk, stop=[stop, "zz"]))
    assert "".join(pieces) == expected
    assert zoo.generate(run, "ab", length=40, seed=3, stop=["zz"]) == whole


# Transformers, which read only so many tokens.


@pytest.fixture(scope="module")
def decoder():
    fields = {"vocab_size": 5, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 12}
    model = zoo.create_model("gpt2", **fields)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return Run(
        model,
        jax.tree.map(lambda leaf: 9 * leaf if leaf.ndim > 1 else leaf, variables),
        TextInputs("char", "\nabcd", 8),
    )


@pytest.mark.slow
def test_a_decoders_greedy_answer_is_the_argmax_of_the_whole_sequence(decoder):
    prompts, lengths = np.array([[1, 2, 3, 4], [4, 1, 0, 0]]), np.array([4, 2])
    (tokens,) = sample(decoder.model, decoder.variables, prompts, 8, Sampling(temperature=0), lengths=lengths)
    for row, length in enumerate(lengths):
        whole = prompts[row : row + 1, :length]
        for _ in range(8):
            logits = decoder.model.apply(decoder.variables, whole)
            whole = np.concatenate([whole, np.argmax(logits[:, -1:], axis=-1)], axis=1)
        np.testing.assert_array_equal(tokens[row], whole[0, length:])


def test_a_full_context_goes_on_from_its_last_half(decoder):
    pieces = list(sample(decoder.model, decoder.variables, np.array([[1, 2, 3]]), 20, Sampling(temperature=0)))
    assert [piece.shape[1] for piece in pieces] == [9, 6, 5]
    text = np.concatenate([[1, 2, 3], *[piece[0] for piece in pieces]])
    whole = text[None, :3]
    for end in (12, 18, 23):
        while len(text[: whole.shape[1]]) < end:
            reads = whole[:, -6 - (whole.shape[1] - 12) % 6 :] if whole.shape[1] >= 12 else whole
            logits = decoder.model.apply(decoder.variables, reads)
            whole = np.concatenate([whole, np.argmax(logits[:, -1:], axis=-1)], axis=1)
    np.testing.assert_array_equal(whole[0], text)


def test_a_model_that_reads_one_token_goes_on_from_each():
    model = zoo.create_model("gpt2", vocab_size=5, hidden_size=16, num_layers=1, num_heads=2, max_length=1)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))
    text = [1]
    for piece in sample(model, variables, np.array([text]), 4, Sampling(temperature=0)):
        text += piece[0].tolist()
    expected = [int(model.apply(variables, np.array([[token]]))[0, 0].argmax()) for token in text[:-1]]
    assert text[1:] == expected


def test_chunks_do_not_change_what_a_decoder_says(decoder):
    whole = zoo.generate(decoder, "ab", length=40, seed=3)
    assert len(whole) == 40
    assert "".join(stream(decoder, "ab", length=40, seed=3, chunk=4)) == whole


def test_scanned_layers_say_the_same(decoder):
    shapes = abstract_variables(decoder.model.clone(scan_layers=True), [jax.ShapeDtypeStruct((1, 2), jnp.int32)])
    scanned = decoder._replace(
        model=decoder.model.clone(scan_layers=True),
        variables={"params": stacked(decoder.variables["params"], shapes["params"])},
    )
    assert zoo.generate(scanned, "ab", length=8, seed=1) == zoo.generate(decoder, "ab", length=8, seed=1)


def test_a_prompt_longer_than_the_context(decoder):
    assert len(zoo.generate(decoder, "abcd" * 3, length=3)) == 3
    with pytest.raises(zoo.ZooError, match="the prompt has 13 tokens, more than the model's max_length of 12"):
        zoo.generate(decoder, "a" * 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "a prompt needs at least one token"),
        ({"prompt": "axb"}, "'x' is not among the 5 characters of the vocabulary"),
        ({"length": 0}, "number of tokens to generate must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0, not -1.0"),
        ({"top_k": 0}, "top-k must be at least 1, not 0"),
        ({"top_p": 1.5}, r"top-p must be in \(0, 1\], not 1.5"),
        ({"min_p": 1.5}, r"min-p must be in \[0, 1\], not 1.5"),
        ({"repetition_penalty": 0.0}, "repetition-penalty must be above 0, not 0.0"),
        ({"stop": [""]}, "stop must be strings of at least one character"),
    ],
)
def test_wrong_options(run, options, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.generate(run, **{"prompt": "a", **options})


def test_tokens_outside_the_vocabulary_and_models_that_say_nothing(run):
    with pytest.raises(zoo.ZooError, match="token 5 is outside the vocabulary of 5"):
        list(sample(run.model, run.variables, np.array([[5]]), 3))
    with pytest.raises(zoo.ZooError, match="ResNet cannot generate text"):
        zoo.generate(zoo.load("resnet20"), "a")


def test_the_first_of_the_largest_is_taken():
    logits = np.random.default_rng(0).integers(-3, 3, (40, 9)).astype(np.float32)
    logits[0] = -np.inf
    logits[1, 4:] = np.inf
    np.testing.assert_array_equal(choose(jnp.asarray(logits), Sampling(0.0), jax.random.key(0)), logits.argmax(axis=1))
    lost = choose(jnp.full((2, 9), jnp.nan), Sampling(0.0), jax.random.key(0))
    assert all(0 <= token < 9 for token in np.asarray(lost))  # a token still
