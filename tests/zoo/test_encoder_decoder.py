"""The encoder-decoder Transformers: published sizes, the sequence protocol with a source, and what wrong input gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sources import (
    BUCKETS,
    LENGTHS,
    SOURCE,
    TOKENS,
    TOLERANCE,
    TRANSFORMER,
    TRANSFORMERS,
    B,
    S,
    T,
    encoded,
    forced,
    kinds,
    step,
    tiny,
    whole,
)

import zoo
from zoo.decode import Sampling, sample
from zoo.registry import abstract_variables
from zoo.transformer.layers import stacked, unstacked


@pytest.mark.parametrize(
    ("name", "width", "mlp", "published"),
    [("transformer_base", 512, 2048, 65e6), ("transformer_big", 1024, 4096, 213e6)],
)
def test_the_papers_count(name, width, mlp, published):
    """An embedding of 37,000; attention, feed-forward and norms with their biases. The paper's table rounds its own."""
    attention, feed, norm = 4 * (width**2 + width), 2 * width * mlp + mlp + width, 2 * width
    layers = 6 * (attention + feed + 2 * norm) + 6 * (2 * attention + feed + 3 * norm)
    assert zoo.model_info(name).parameters == 37_000 * width + layers
    assert zoo.model_info(name).parameters == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t5_small", 60_506_624),
        ("t5_base", 222_903_552),
        ("t5_v1_1_small", 76_961_152),
        ("t5_v1_1_base", 247_577_856),
        ("flan_t5_small", 76_961_152),
        ("flan_t5_base", 247_577_856),
        ("bart_base", 139_420_416 + 50_265),  # the bias of the head is a buffer in the published files
        ("bart_large", 406_291_456 + 50_265),
    ],
)
def test_published_counts(name, published):
    assert zoo.model_info(name).parameters == published


def test_attention_weights_of_a_decoder_have_heads_targets_and_sources():
    assert zoo.model_info("transformer_base").features["decoder/layers/layer5/cross/weights"] == (8, 512, 512)


def test_flops_are_those_of_the_arithmetic_with_a_source_as_long_as_the_target():
    """Products with weights, and both of attention's, of 18 attentions with the whole T x S."""
    weights = 6 * (4 * 512**2 + 2 * 512 * 2048) + 6 * (8 * 512**2 + 2 * 512 * 2048) + 512 * 32_128
    assert zoo.model_info("t5_small").flops == 2 * 512 * weights + 18 * 4 * 512**2 * 512


@pytest.mark.parametrize("name", ["transformer_base", "transformer_big", "t5_small", "bart_base", "opus_mt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(name, dtype):
    model, example = zoo.create_model(name, dtype=dtype), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    variables = abstract_variables(model, [example])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    encode = functools.partial(model.apply, max_length=9, method="encode")
    state = jax.eval_shape(encode, variables, example, None)
    out, after = jax.eval_shape(model.apply, variables, example, state)
    assert (out.shape, out.dtype) == ((2, 8, model.vocab_size), jnp.dtype(dtype))
    assert after == state
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", dtype}


@pytest.mark.parametrize("kind", kinds(TRANSFORMERS))
def test_later_tokens_do_not_change_earlier_logits(kind):
    model, variables = tiny(kind)
    other = TOKENS.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    after = forced(model, variables, other, SOURCE, LENGTHS)
    np.testing.assert_array_equal(whole(kind)[:, :4], after[:, :4])
    assert np.abs(whole(kind)[:, 4] - after[:, 4]).max() > 1e-3


def test_only_the_order_of_the_source_tells_its_permutations_apart():
    """Sinusoids and distances: without them the two sources would be the same."""
    for kind in TRANSFORMERS:
        model, variables = tiny(kind)
        turned, straight = (forced(model, variables, TOKENS, source) for source in (SOURCE[:, ::-1], SOURCE))
        assert np.abs(turned - straight).max() > 1e-3


@pytest.mark.parametrize("kind", kinds(TRANSFORMERS))
def test_every_parameter_learns(kind):
    model, variables = tiny(kind, dropout_rate=0.1)

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        options = {"source": SOURCE, "source_lengths": LENGTHS, "train": True, "rngs": rngs}
        out = model.apply({"params": params}, TOKENS, **options)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        # Attention does not change when all keys move alike: their bias has no gradient.
        name = jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > (1e-3 if "['key']['bias']" not in name else -1), name


@pytest.mark.parametrize("kind", kinds(TRANSFORMERS))
def test_scanned_layers_are_the_same_layers(kind):
    model, variables = tiny(kind)
    scanned = model.clone(scan_layers=True)
    shapes = abstract_variables(scanned, [jax.ShapeDtypeStruct((1, T), jnp.int32)])
    params = stacked(variables["params"], shapes["params"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes["params"])
    jax.tree.map(np.testing.assert_array_equal, unstacked(params), variables["params"])
    options = {"source": SOURCE, "source_lengths": LENGTHS, "mutable": ["features"]}
    logits, changed = jax.jit(functools.partial(scanned.apply, **options))({"params": params}, TOKENS)
    expected, wanted = jax.jit(functools.partial(model.apply, **options))(variables, TOKENS)
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
    for a, b in zip(jax.tree.leaves_with_path(changed), jax.tree.leaves_with_path(wanted), strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1], b[1], **TOLERANCE)
    first, state = step(scanned, {"params": params}, TOKENS[:, :4], encoded(scanned, {"params": params}, T))
    more, _ = step(scanned, {"params": params}, TOKENS[:, 4:], state)
    np.testing.assert_allclose(np.concatenate([first, more], axis=1), logits, **TOLERANCE)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_changes_no_gradient(scan_layers):
    fields = {**TRANSFORMER, "num_layers": 1}
    model = zoo.create_model("t5_small", **fields, **BUCKETS, scan_layers=scan_layers)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)

    def gradients(remat):
        def loss(params):
            options = {"source": SOURCE, "train": True, "rngs": {"dropout": jax.random.key(1)}}
            return jnp.square(model.clone(remat=remat).apply({"params": params}, TOKENS, **options)).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients("full"), gradients("none"))


def test_features_have_the_documented_names():
    model, variables = tiny("post_norm")
    options = {"source": SOURCE, "source_lengths": LENGTHS}
    out, changed = model.apply(variables, TOKENS, **options, mutable=["features"])
    np.testing.assert_array_equal(out, model.apply(variables, TOKENS, **options))
    assert set(changed["features"]) == {"encoder", "decoder"}
    layer = changed["features"]["decoder"]["layers"]["layer1"]
    assert set(layer) == {"attention", "cross", "hidden"}
    weights = np.asarray(layer["cross"]["weights"])
    assert weights.shape == (B, 4, T, S)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not weights[1, :, :, 2:].any()
    assert "encoder/normalised" in zoo.model_info("t5_small").features


# Answers to a source.


@pytest.mark.parametrize("kind", ["pre_norm", "t5_1.1"])
def test_the_greedy_answer_is_the_argmax_of_the_whole_target_each_time(kind):
    model, variables = tiny(kind)
    target = np.zeros((B, T), np.int32)
    for i in range(1, T):
        target[:, i] = np.argmax(forced(model, variables, target, SOURCE, LENGTHS)[:, i - 1], axis=-1)
    assert len(np.unique(target[:, 1:])) > 3
    options = {"source": SOURCE, "source_lengths": LENGTHS, "chunk": 4}
    pieces = sample(model, variables, target[:, :1], T - 1, Sampling(temperature=0), **options)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), target[:, 1:])
    scanned = model.clone(scan_layers=True)
    shapes = abstract_variables(scanned, [jax.ShapeDtypeStruct((1, 1), jnp.int32)])
    variables = {"params": stacked(variables["params"], shapes["params"])}
    pieces = sample(scanned, variables, target[:, :3], T - 3, Sampling(temperature=0), **options)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), target[:, 3:])


def test_a_source_that_may_not_be_is_missing_or_too_long_to_answer():
    model, variables = tiny("t5")
    answer = functools.partial(sample, model, variables, np.zeros((B, 1), np.int32))
    with pytest.raises(zoo.ZooError, match="T5 needs a source"):
        next(answer(3))
    with pytest.raises(zoo.ZooError, match="a target of 17 tokens is longer than T5's max_length of 16"):
        next(answer(16, source=SOURCE))
    with pytest.raises(zoo.ZooError, match="token 11 is outside the vocabulary of 11"):
        next(answer(3, source=np.full((B, S), 11)))
    with pytest.raises(zoo.ZooError, match="Decoder takes no source"):
        next(sample(zoo.create_model("gpt2"), {}, np.zeros((1, 1), np.int32), 3, source=SOURCE))


# Wrong input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes a source with its lengths, or a state from `encode`, not neither"),
        ({"source": SOURCE, "state": {}}, "or a state from `encode`, not both"),
        ({"state": {}, "source_lengths": LENGTHS}, "not a state and source_lengths"),
        ({"source": SOURCE, "source_lengths": [6, 1, 1]}, "length 6 is outside 0 to 5"),
        ({"source": SOURCE, "source_lengths": [1, 1]}, r"one length per row, \[3\], not \[2\]"),
        ({"source": SOURCE, "lengths": [8, 1, 1]}, "length 8 is outside 0 to 7"),
        ({"source": SOURCE + 11}, "token .* is outside the vocabulary of 11"),
        ({"source": np.zeros((B, 17), np.int32)}, "17 tokens are more than the model's max_length of 16"),
        ({"source": SOURCE[:2]}, r"attention of \[3, 7, 4, 4\] to keys \[2, 5, 4, 4\]"),
    ],
)
def test_wrong_input(options, message):
    model, variables = tiny("post_norm")
    with pytest.raises(zoo.ZooError, match=message) as error:
        model.apply(variables, TOKENS, **options)
    assert "\n" not in str(error.value)


def test_too_many_or_strange_target_tokens():
    model, variables = tiny("post_norm")
    with pytest.raises(zoo.ZooError, match="17 tokens are more than the model's max_length of 16"):
        model.apply(variables, np.zeros((B, 17), np.int32), source=SOURCE)
    with pytest.raises(zoo.ZooError, match="20 tokens are more than the model's max_length of 16"):
        encoded(model, variables, 20)
    with pytest.raises(zoo.ZooError, match="token 11 is outside the vocabulary of 11"):
        model.apply(variables, np.full((B, 2), 11), source=SOURCE)
    model, variables = tiny("pre_norm")
    model.apply(variables, TOKENS, source=np.full((B, S), 12))  # its source has more tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "hidden_size 16 must be a multiple of num_heads 3"),
        ({"hidden_size": 9, "num_heads": 3}, "hidden_size must be even, for sines and cosines, not 9"),
    ],
)
def test_sizes_that_do_not_divide(fields, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_model("transformer_base", **{**TRANSFORMER, **fields}).init(jax.random.key(0), TOKENS)
