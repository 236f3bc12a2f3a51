"""The recurrent models from one sequence to another: sizes, an empty source, attention, wrong input."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sources import LENGTHS, SEQ2SEQ, SOURCE, TOKENS, TOLERANCE, B, S, T, forced, kinds, tiny, whole

import zoo
from zoo.registry import abstract_variables
from zoo.seq2seq.model import reversed_rows

NAMES = zoo.list_models(family="seq2seq")
ATTENTIVE = [kind for kind in SEQ2SEQ if kind != "lstm"]


@functools.partial(jax.jit, static_argnums=0)
def seen(model, variables, tokens, source, source_lengths):
    options = {"source": source, "source_lengths": source_lengths, "mutable": ["features"]}
    return model.apply(variables, tokens, **options)


# Sizes.


def lstm(width, size):
    return 4 * size * (width + size + 1)


def test_the_count_of_sutskever_et_al():
    """Section 3.4: 384 million, of which 64 in the layers."""
    layers = 8 * lstm(1000, 1000)
    ends = 160_000 * 1000 + 80_000 * 1000 + 80_000 * 1001
    assert zoo.model_info("seq2seq_lstm").parameters == layers + ends
    assert (round(layers / 1e6), round((layers + ends) / 1e6)) == (64, 384)


def test_counts_by_arithmetic():
    def gru(width, size):
        return 3 * size * (width + size + 1) + size

    words = 30_000 * 620
    attention = 2000 * 1000 + 1000 * 1000 + 1000
    maxout = (1000 + 620 + 2000 + 1) * 1000
    expected = 2 * words + 2 * gru(620, 1000) + 1000 * 1000 + gru(620 + 2000, 1000) + attention + maxout
    assert zoo.model_info("seq2seq_gru_attention").parameters == expected + 501 * 30_000
    expected = 2 * 50_000 * 1000 + 7 * lstm(1000, 1000) + lstm(2000, 1000) + 1000 * 1000 + 2000 * 1000 + 1001 * 50_000
    assert zoo.model_info("seq2seq_lstm_luong").parameters == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(name, dtype):
    model, example = zoo.create_model(name, dtype=dtype), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    variables = abstract_variables(model, [example])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    state = jax.eval_shape(functools.partial(model.apply, max_length=9, method="encode"), variables, example, None)
    out, after = jax.eval_shape(model.apply, variables, example, state)
    assert (out.shape, out.dtype) == ((2, 8, model.vocab_size), jnp.dtype(dtype))
    assert after == state
    cells = {"float32"} if name != "seq2seq_gru_attention" else set()  # an LSTM's c
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", dtype} | cells


# The source.


@pytest.mark.parametrize("kind", kinds(SEQ2SEQ))
def test_an_empty_source_is_zeros_in_place_of_what_was_read(kind):
    model, variables = tiny(kind)
    lengths = np.array([5, 0, 3], np.int32)
    logits = forced(model, variables, TOKENS, SOURCE, lengths)
    nothing = forced(model, variables, TOKENS, SOURCE[:, :0])
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1], nothing[1], **TOLERANCE)
    np.testing.assert_array_equal(logits[::2], whole(kind)[::2])

    def loss(params):
        options = {"source": SOURCE, "source_lengths": lengths}
        return jnp.square(model.apply({"params": params}, TOKENS, **options)).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])))


def test_a_row_is_turned_about_without_its_padding():
    x = np.arange(10).reshape(2, 5)
    turned = reversed_rows(x, np.array([5, 3]))
    assert turned.tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9]]
    np.testing.assert_array_equal(reversed_rows(turned, np.array([5, 3])), x)


# Training.


@pytest.mark.parametrize("kind", kinds(SEQ2SEQ))
def test_every_parameter_learns(kind):
    model, variables = tiny(kind, dropout_rate=0.1)

    def loss(params, seed=1):
        rngs = {"dropout": jax.random.key(seed)}
        options = {"source": SOURCE, "source_lengths": LENGTHS, "train": True, "rngs": rngs}
        out = model.apply({"params": params}, TOKENS, **options)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-3, jax.tree_util.keystr(path)
    assert abs(jax.jit(loss)(variables["params"], 2) - value) > 1e-3  # dropout


# Features.


@pytest.mark.parametrize("kind", kinds(SEQ2SEQ))
def test_features_are_those_documented_and_change_nothing(kind):
    model, variables = tiny(kind)
    logits, changed = seen(model, variables, TOKENS, SOURCE, LENGTHS)
    np.testing.assert_allclose(logits, whole(kind), **TOLERANCE)
    words = re.findall(r"[\w/]+", type(model).__doc__.split("Features: ")[1])
    assert set(changed["features"]) >= {"encoder", "hidden"}
    assert set(changed["features"]) <= {word.split("/")[0] for word in words}
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(changed["features"]))


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_attention_is_over_each_rows_own_source(kind):
    model, variables = tiny(kind)
    lengths = np.array([5, 2, 0], np.int32)
    weights = np.asarray(seen(model, variables, TOKENS, SOURCE, lengths)[1]["features"]["attention"])
    assert weights.shape == (B, T, S)
    np.testing.assert_allclose(weights.sum(axis=-1)[:2], 1, rtol=1e-5)
    assert not weights[1, :, 2:].any()
    assert not weights[2].any()
    assert weights[0].std(axis=0).max() > 1e-3


@pytest.mark.parametrize("kind", ["dot", "unfed"])
def test_the_place_attended_to_is_a_place_of_the_source_as_it_was_given(kind):
    """By the paper's equations from what the features hold: exp(h s) of the encoder's outputs, which go backwards."""
    model, variables = tiny(kind)
    features = seen(model, variables, TOKENS, SOURCE, LENGTHS)[1]["features"]
    encoded = np.asarray(reversed_rows(features["encoder"]["output"], LENGTHS))
    for row, length in enumerate(LENGTHS):
        if kind == "unfed":
            outputs = np.asarray(features["decoder"]["output"])[row]
        else:  # hidden is tanh([context, output] combine), of which the output is solved for
            combine = np.asarray(variables["params"]["combine"])
            context = np.asarray(features["attention"])[row] @ encoded[row]
            before = np.arctanh(np.asarray(features["hidden"])[row].astype(np.float64))
            outputs = np.linalg.solve(combine[8:].T, (before - context @ combine[:8]).T).T
        scores = np.exp(outputs @ encoded[row, :length].T)
        expected = scores / scores.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(features["attention"][row, :, :length], expected, atol=2e-3)


def test_registered_features_have_shapes():
    features = zoo.model_info("seq2seq_gru_attention").features
    assert features["attention"] == (50, 50)
    assert features["encoder/layer0_reverse/update_gate"] == (50, 1000)
    assert zoo.model_info("seq2seq_lstm").features["decoder/layer3/cell"] == (50, 1000)


# Wrong input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes a source with its lengths, or a state from `encode`, not neither"),
        ({"source": SOURCE, "state": {}}, "or a state from `encode`, not both"),
        ({"source": SOURCE, "source_lengths": [6, 1, 1]}, "length 6 is outside 0 to 5"),
        ({"source": SOURCE, "source_lengths": [1, 1]}, r"one length per row, \[3\], not \[2\]"),
        ({"source": SOURCE, "lengths": [8, 1, 1]}, "length 8 is outside 0 to 7"),
        ({"source": SOURCE + 13}, "token .* is outside the vocabulary of 13"),
        ({"source": SOURCE[:2]}, "Seq2SeqLSTM: 3 targets for 2 sources"),
    ],
)
def test_wrong_input(options, message):
    model, variables = tiny("lstm")
    with pytest.raises(zoo.ZooError, match=message) as error:
        model.apply(variables, TOKENS, **options)
    assert "\n" not in str(error.value)


def test_a_score_that_is_none():
    with pytest.raises(zoo.ZooError, match="score must be one of 'dot', 'general', 'concat', not 'bilinear'"):
        zoo.create_model("seq2seq_lstm_luong", score="bilinear")
