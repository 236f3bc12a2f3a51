"""The recurrent family: published sizes, the sequence protocol, pooling, features, and what wrong input gets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.lstm.layers import Recurrent
from zoo.registry import abstract_variables

NAMES = zoo.list_models(family="lstm")
LANGUAGE_MODELS = {
    "lstm_lm": {"hidden_size": 8, "vocab_size": 11, "num_layers": 2},
    "gru_lm": {"hidden_size": 8, "vocab_size": 11, "tied": True},
    "rnn_lm": {"hidden_size": 8, "vocab_size": 11, "embedding_size": 5},
    "awd_lstm": {"hidden_size": 9, "vocab_size": 11, "embedding_size": 6},
}
TINY = {
    **LANGUAGE_MODELS,
    "lstm": {"hidden_size": 8, "num_layers": 2, "bidirectional": True},
    "gru": {"hidden_size": 8, "num_layers": 2, "bidirectional": True},
    "rnn": {"hidden_size": 8},
    "lstm_classifier": {"hidden_size": 8, "embedding_size": 6, "vocab_size": 11, "pooling": "attention"},
    "lstm_encoder": {"hidden_size": 8, "embedding_size": 6, "num_layers": 2},
    "lstm_forecaster": {"hidden_size": 8, "num_layers": 2},
    "lstm_sentence_encoder": {"hidden_size": 8, "embedding_size": 6, "vocab_size": 11, "num_layers": 1},
}
B, T = 3, 7
TOKENS = np.random.default_rng(0).integers(0, 11, (B, T)).astype(np.int32)


@functools.cache
def tiny(name, **fields):
    """A tiny model, its variables and an input."""
    model = zoo.create_model(name, **{**TINY[name], **fields})
    x = TOKENS if zoo.model_info(name).input_dtype == "int32" else np.random.default_rng(1).normal(size=(B, T, 4))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_parameter_counts_of_the_papers():
    counts = {name: zoo.model_info(name).parameters for name in NAMES}
    assert round(counts["lstm_lm_medium"] / 1e6) == 20  # Zaremba et al. 2014: two layers of 650 on 10,000 words
    assert round(counts["lstm_lm_large"] / 1e6) == 66  # and of 1,500
    assert round(counts["awd_lstm"] / 1e6) == 24  # Merity et al. 2018, table 1


def test_parameter_counts_by_arithmetic():
    def layer(gates, width, size):
        return gates * size * (width + size + 1)

    assert zoo.model_info("lstm").parameters == layer(4, 128, 512)
    assert zoo.model_info("gru").parameters == layer(3, 128, 512) + 512
    assert zoo.model_info("rnn").parameters == layer(1, 128, 512)
    ends = 128 * 512 + 513 * 128
    assert zoo.model_info("lstm_lm_3x512").parameters == 3 * layer(4, 512, 512) + ends


def test_the_sizes_of_karpathy_johnson_and_li_have_names():
    for cell in ("lstm", "gru", "rnn"):
        for layers in (1, 2, 3):
            for size in (64, 128, 256, 512):
                fields = zoo.model_info(f"{cell}_lm_{layers}x{size}").fields
                assert (fields["cell"], fields["num_layers"], fields["hidden_size"]) == (cell, layers, size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(name, dtype):
    info = zoo.model_info(name)
    model, ((example,), _) = zoo.create_model(name, dtype=dtype), info.example(2)
    variables = abstract_variables(model, [example])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, example)
    assert out.dtype == jnp.dtype(dtype)
    assert out.shape[0] == 2


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_trains(name):
    model, variables, x = tiny(name)

    def loss(params):
        out = model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_every_architecture_has_a_tiny_model():
    classes = {zoo.model_info(name).module_class for name in NAMES}
    assert classes == {zoo.model_info(name).module_class for name in TINY}


@pytest.mark.parametrize("name", TINY)
def test_features_are_those_documented_and_change_nothing(name):
    model, variables, x = tiny(name)
    plain = model.apply(variables, x)
    out, changed = model.apply(variables, x, mutable=["features"])
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    words = re.findall(r"[\w/]+", type(model).__doc__.split("Features: ")[1])
    documented = {word.split("/")[0] for word in words}
    assert changed["features"]
    assert {re.sub("layer[0-9]+", "layer0", name) for name in changed["features"]} <= documented
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(changed["features"]))


def test_cell_activations_are_what_the_cells_hold():
    model, variables, x = tiny("lstm_lm")
    (_, state), changed = model.apply(variables, x, model.init_state(B), mutable=["features"])
    for layer in ("layer0", "layer1"):
        cell = changed["features"]["layers"][layer]["cell"]
        np.testing.assert_allclose(cell[:, -1], state["layers"][layer][1], rtol=1e-5, atol=1e-6)


# The sequence protocol.


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("pieces", [[1] * T, [3, 4], [2, 1, 4]])
def test_token_by_token_in_chunks_and_all_at_once(name, pieces):
    model, variables, x = tiny(name)
    whole = model.apply(variables, x)
    state, seen, start = model.init_state(B, T), [], 0
    for size in pieces:
        logits, state = model.apply(variables, x[:, start : start + size], state)
        seen.append(logits)
        start += size
    np.testing.assert_allclose(np.concatenate(seen, axis=1), whole, rtol=1e-5, atol=1e-5)
    assert state["position"].tolist() == [T] * B
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_ragged_rows_stand_where_their_tokens_end(name):
    model, variables, x = tiny(name)
    lengths = np.array([7, 0, 4], np.int32)
    logits, state = model.apply(variables, x, model.init_state(B), lengths=lengths)
    assert state["position"].tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        own = model.init_state(1)
        if length:
            alone, own = model.apply(variables, x[row : row + 1, :length], own)
            np.testing.assert_allclose(logits[row, :length], alone[0], rtol=1e-5, atol=1e-5)
        for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(leaf[row], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fields", [{"cell": "gru", "reset_after": False}, {"cell": "lstm", "projection_size": 3}])
def test_cells_of_other_forms_run_in_chunks_and_train(fields):
    x = np.random.default_rng(0).normal(size=(B, T, 4)).astype(np.float32)
    model = Recurrent(hidden_size=8, num_layers=2, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert "candidate_bias" not in variables["params"]["layer0"]
    first, state = model.apply(variables, x[:, :3], model.init_state(B))
    second, _ = model.apply(variables, x[:, 3:], state)
    whole, changed = model.apply(variables, x, mutable=["features"])
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-5)
    assert whole.shape == (B, T, fields.get("projection_size", 8))
    assert changed["features"]["layer1"]
    gradients = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, x, lengths=np.array([7, 2, 0])) ** 2)))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_fields_of_another_cell_are_refused():
    x = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(zoo.ZooError, match="reset_after=False is for the cell 'gru', not 'lstm'"):
        zoo.create_model("lstm", reset_after=False).init(jax.random.key(0), x)
    with pytest.raises(zoo.ZooError, match="projection_size is for the cell 'lstm', not 'rnn'"):
        zoo.create_model("rnn", projection_size=2).init(jax.random.key(0), x)


def test_the_empty_state_needs_no_variables_and_is_zeros():
    for name in LANGUAGE_MODELS:
        model = tiny(name)[0]
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(model.init_state(2, 100)))


def test_a_tied_head_is_the_embedding():
    _, variables, x = tiny("gru_lm")
    assert set(variables["params"]) == {"embedding", "layers", "head_bias"}
    with pytest.raises(zoo.ZooError, match="a tied head needs embedding_size 5 to be hidden_size 8"):
        zoo.create_model("gru_lm", hidden_size=8, embedding_size=5, tied=True).init(jax.random.key(0), x)


# Dropout of AWD-LSTM.


def test_variational_dropout_has_one_mask_for_all_steps():
    def dropped(variational):
        """Which inputs of the second layer are dropped in which step: those that its kernel's gradient lacks."""
        x, key = jnp.ones((1, 6, 4)), jax.random.key(3)
        fields = {"hidden_size": 16, "num_layers": 2, "dropout_rate": 0.5, "variational": variational}
        model = zoo.create_model("rnn", **fields)
        params = model.init(key, x)["params"]
        # The recurrent kernel of the second layer taken out, a step's output is of that step's inputs alone.
        params["layer1"]["recurrent_kernel"] *= 0

        def outputs(params):
            return model.apply({"params": params}, x, train=True, rngs={"dropout": key})[0].sum(axis=-1)

        return np.asarray(jax.jacrev(outputs)(params)["layer1"]["kernel"]).any(axis=2)

    shared = dropped(True)
    assert (shared == shared[0]).all()
    assert 0 < shared[0].sum() < 16
    separate = dropped(False)
    assert not (separate == separate[0]).all()


def test_weight_drop_leaves_out_connections_in_training_alone():
    model, variables, x = tiny("awd_lstm", embedding_dropout_rate=0.0, input_dropout_rate=0.0, dropout_rate=0.0)
    model = model.clone(output_dropout_rate=0.0)

    def out(train, seed=0):
        return np.asarray(model.apply(variables, x, train=train, rngs={"dropout": jax.random.key(seed)}))

    np.testing.assert_array_equal(out(False), out(False, 1))
    assert np.abs(out(True) - out(True, 1)).max() > 1e-3
    np.testing.assert_array_equal(out(True)[:, 0], out(False)[:, 0])  # the first step has no state to connect


# Classifier and encoder.


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
def test_pooling_sees_a_rows_own_steps(pooling):
    model, variables, x = tiny("lstm_classifier", pooling=pooling)
    lengths = np.array([7, 0, 4], np.int32)
    logits = model.apply(variables, x, lengths)
    changed = x.copy()
    changed[2, 4:] = 0
    np.testing.assert_allclose(model.apply(variables, changed, lengths), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.apply(variables, x[2:, :4])[0], logits[2], rtol=1e-5, atol=1e-6)
    assert np.isfinite(logits).all()


def test_attention_weights_are_a_distribution_over_the_own_steps():
    model, variables, x = tiny("lstm_classifier")
    _, changed = model.apply(variables, x, np.array([7, 1, 4]), mutable=["features"])
    weights = np.asarray(changed["features"]["attention"])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights[1].tolist() == [pytest.approx(1)] + [0] * 6
    assert not weights[2, 4:].any()


@pytest.mark.parametrize("name", ["lstm_encoder", "lstm_sentence_encoder"])
def test_embeddings_have_length_one_and_do_not_see_padding(name):
    model, variables, x = tiny(name)
    lengths = np.array([7, 3, 4])
    out = model.apply(variables, x, lengths)
    assert out.shape == (B, 6)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.apply(variables, x[1:2, :3])[0], out[1], rtol=1e-5, atol=1e-6)


def test_an_encoders_activation_comes_before_the_norm():
    """Resemblyzer's: relu(linear(hidden)) over its length; zeros where no feature is positive."""
    model, variables, x = tiny("lstm_encoder", activation="relu")
    out, changed = model.apply(variables, x, mutable=["features"])
    head = variables["params"]["head"]
    embedding = np.maximum(changed["features"]["pooled"] @ head["kernel"] + head["bias"], 0)
    assert 0 < (embedding == 0).mean() < 1
    np.testing.assert_allclose(out, embedding / np.linalg.norm(embedding, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    negative = {"params": {**variables["params"], "head": {**head, "bias": head["bias"] - 100}}}
    assert not model.apply(negative, x).any()


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm_encoder"])
@pytest.mark.parametrize("features", [False, True])
def test_nan_in_padding_changes_nothing(name, features):
    """Neither outputs nor gradients, of the parameters and of the steps that are no padding."""
    model, variables, x = tiny(name)
    lengths = np.array([7, 0, 4], np.int32)
    padding = (np.arange(T) >= lengths[:, None])[..., None]

    def loss(variables, x):
        out = model.apply(variables, x, lengths=lengths, mutable=["features"] if features else False)
        out = out[0] if features else out
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean, *dirty = (run(variables, np.where(padding, value, x)) for value in (0, np.nan, np.inf))
    for results in dirty:
        jax.tree.map(np.testing.assert_array_equal, results, clean)


# Wrong input.


@pytest.mark.parametrize("name", ["lstm_lm", "awd_lstm", "lstm_classifier", "lstm_sentence_encoder"])
def test_wrong_tokens_and_lengths(name):
    model, variables, x = tiny(name)
    with pytest.raises(zoo.ZooError, match="token 11 is outside the vocabulary of 11"):
        model.apply(variables, x + 1 * (x == x.max()) + (11 - x.max() - 1) * (x == x.max()))
    with pytest.raises(zoo.ZooError, match="token -1 is outside"):
        model.apply(variables, x - x.min() - 1)
    with pytest.raises(zoo.ZooError, match=r"takes integer tokens \[batch, time\], not float32 \[3, 7\]"):
        model.apply(variables, x.astype(np.float32))
    with pytest.raises(zoo.ZooError, match="length 8 is outside 0 to 7"):
        model.apply(variables, x, lengths=np.array([1, 8, 2]))
    with pytest.raises(zoo.ZooError, match=r"one length per row, \[3\], not \[2\]"):
        model.apply(variables, x, lengths=np.array([1, 2]))


def test_concrete_tokens_inside_a_traced_function():
    model, variables, x = tiny("lstm_lm")
    inside = jax.jit(lambda v: model.apply(v, jnp.asarray(x), lengths=jnp.full(B, T)))(variables)
    np.testing.assert_allclose(inside, model.apply(variables, x), rtol=1e-5, atol=1e-5)
