"""The Transformers: published sizes, the sequence protocol, packing, scanned layers, and what wrong input gets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.registry import abstract_variables
from zoo.transformer.decoder import Decoder
from zoo.transformer.layers import stacked, unstacked

PUBLISHED = {  # of the authors' own checkpoints
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "qwen3_0.6b": 596_049_920,
}
SMALL = {"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "mlp_size": 24, "max_length": 16}
TINY = {  # every scheme of positions, the window, grouped heads, an untied head
    "gpt2": SMALL,
    "nanogpt": {**SMALL, "window": 3},
    "smollm2_135m": {**SMALL, "num_kv_heads": 2},
    "llama3_1b": {**SMALL, "num_kv_heads": 1, "tied": False, "rope_scaling": (4.0, 1.0, 4.0, 8)},
    "qwen3_0.6b": {**SMALL, "num_kv_heads": 2, "head_dim": 6, "window": 4},
}
DECODERS = [name for name in zoo.list_models() if zoo.model_info(name).module_class is Decoder]
B, T = 3, 7
TOKENS = np.random.default_rng(0).integers(0, 11, (B, T)).astype(np.int32)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def tiny(name, **fields):
    """A tiny model and its variables, in which layers count for as much as embeddings."""
    model = zoo.create_model(name, **{**TINY[name], **fields})
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    return model, jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, variables)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


def test_nanogpts_count():
    """12 D^2 a layer, embeddings, positions, the scales of the norms."""
    for name, width, layers, length in (("nanogpt", 384, 6, 256), ("nanogpt_4x128", 128, 4, 64)):
        expected = 12 * width**2 * layers + (65 + length) * width + (2 * layers + 1) * width
        assert zoo.model_info(name).parameters == expected


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in TINY)) for n in DECODERS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(name, dtype):
    model, example = zoo.create_model(name, dtype=dtype), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    variables = abstract_variables(model, [example])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, example)
    assert (out.shape, out.dtype) == ((2, 8, model.vocab_size), jnp.dtype(dtype))


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_trains(name):
    model, variables = tiny(name, dropout_rate=0.1)

    def loss(params):
        out = model.apply({"params": params}, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        # Attention does not change when all keys move alike: their bias has no gradient.
        assert np.abs(leaf).max() > 0 or "['key']['bias']" in jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("pieces", [[1] * T, [3, 4], [2, 1, 4]])
def test_token_by_token_in_chunks_and_all_at_once(name, pieces):
    model, variables = tiny(name)
    whole = model.apply(variables, TOKENS)
    state, seen, start = model.init_state(B, T), [], 0
    for size in pieces:
        logits, state = model.apply(variables, TOKENS[:, start : start + size], state)
        seen.append(logits)
        start += size
    np.testing.assert_allclose(np.concatenate(seen, axis=1), whole, **TOLERANCE)
    assert state["position"].tolist() == [T] * B
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", TINY)
def test_ragged_rows_go_on_where_their_tokens_end(name):
    model, variables = tiny(name)
    lengths = np.array([7, 0, 4], np.int32)
    logits, state = model.apply(variables, TOKENS, model.init_state(B, 10), lengths=lengths)
    assert state["position"].tolist() == lengths.tolist()
    more, _ = model.apply(variables, TOKENS[:, :3], state)
    for row, length in enumerate(lengths):
        own = np.concatenate([TOKENS[row, :length], TOKENS[row, :3]])[None]
        alone = model.apply(variables, own)
        np.testing.assert_allclose(logits[row, :length], alone[0, :length], **TOLERANCE)
        np.testing.assert_allclose(more[row], alone[0, length:], **TOLERANCE)


def test_the_empty_state_needs_no_variables_and_is_zeros():
    for name in TINY:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(tiny(name)[0].init_state(2, 10)))


@pytest.mark.parametrize("name", TINY)
def test_later_tokens_do_not_change_earlier_logits(name):
    model, variables = tiny(name)
    other = TOKENS.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    before, after = model.apply(variables, TOKENS), model.apply(variables, other)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4] - after[:, 4]).max() > 1e-3


def test_a_window_forgets_what_is_before_it():
    model, variables = tiny("nanogpt", num_layers=1)
    other = TOKENS.copy()
    other[:, 0] = (other[:, 0] + 1) % 11
    moved = np.abs(model.apply(variables, TOKENS) - model.apply(variables, other)).max(axis=(0, 2))
    assert (moved[:3] > 1e-4).all()
    assert (moved[3:] == 0).all()


@pytest.mark.parametrize("name", TINY)
def test_packed_documents_do_not_see_one_another(name):
    model, variables = tiny(name)
    segments = np.array([[0, 0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5, 5], [0, 1, 1, 1, 1, 2, 2]], np.int32)
    packed = model.apply(variables, TOKENS, segments=segments)
    for row in range(B):
        for number in np.unique(segments[row]):
            own = segments[row] == number
            alone = model.apply(variables, TOKENS[row : row + 1, own])
            np.testing.assert_allclose(packed[row, own], alone[0], **TOLERANCE)


# Scanned layers and rematerialisation.


@pytest.mark.parametrize("name", TINY)
def test_scanned_layers_are_the_same_layers(name):
    model, variables = tiny(name)
    scanned = model.clone(scan_layers=True)
    shapes = abstract_variables(scanned, [jax.ShapeDtypeStruct((1, T), jnp.int32)])
    params = stacked(variables["params"], shapes["params"])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes["params"])
    jax.tree.map(np.testing.assert_array_equal, unstacked(params), variables["params"])
    whole, changed = scanned.apply({"params": params}, TOKENS, mutable=["features"])
    expected, wanted = model.apply(variables, TOKENS, mutable=["features"])
    np.testing.assert_allclose(whole, expected, **TOLERANCE)
    for a, b in zip(jax.tree.leaves_with_path(changed), jax.tree.leaves_with_path(wanted), strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1], b[1], **TOLERANCE)
    logits, state = scanned.apply({"params": params}, TOKENS[:, :4], scanned.init_state(B, T))
    more, _ = scanned.apply({"params": params}, TOKENS[:, 4:], state)
    np.testing.assert_allclose(np.concatenate([logits, more], axis=1), whole, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_changes_no_gradient(scan_layers):
    def gradients(remat):
        model = zoo.create_model("gpt2", **SMALL, remat=remat, scan_layers=scan_layers, dropout_rate=0.2)
        variables = jax.jit(model.init)(jax.random.key(0), TOKENS)

        def loss(params):
            logits = model.apply({"params": params}, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
            return jnp.square(logits).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    plain = gradients("none")
    for remat in ("dots", "full"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradients(remat), plain)


def test_scanned_layers_draw_their_own_dropout():
    model = zoo.create_model("gpt2", **{**SMALL, "num_layers": 3}, scan_layers=True, dropout_rate=0.5)
    variables = model.init(jax.random.key(0), TOKENS)
    apply = functools.partial(model.apply, variables, TOKENS, train=True, mutable=["features"])
    _, changed = apply(rngs={"dropout": jax.random.key(1)})
    hidden = [np.asarray(changed["features"]["layers"][f"layer{i}"]["hidden"]) for i in range(3)]
    added = [(hidden[i + 1] - hidden[i]) == 0 for i in range(2)]  # where both of a layer's masks are zero
    assert (added[0] != added[1]).any()


# Features and wrong input.


def test_attention_weights_are_sown_under_documented_names():
    model, variables = tiny("smollm2_135m")
    out, changed = model.apply(variables, TOKENS, mutable=["features"])
    np.testing.assert_array_equal(out, model.apply(variables, TOKENS))
    features = changed["features"]
    assert set(features) == {"embedded", "layers", "normalised"}
    weights = np.asarray(features["layers"]["layer1"]["attention"]["weights"])
    assert weights.shape == (B, 4, T, T)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "hidden_size 16 must be a multiple of num_heads 3"),
        ({"num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
    ],
)
def test_head_counts_that_do_not_divide(fields, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_model("gpt2", **{**SMALL, **fields}).init(jax.random.key(0), TOKENS)


def test_an_unknown_activation_or_norm():
    with pytest.raises(zoo.ZooError, match=r"activation must be one of 'gelu', .* not 'swish'"):
        zoo.create_model("gpt2", activation="swish")


def test_more_tokens_than_the_model_reads():
    model, variables = tiny("gpt2")
    with pytest.raises(zoo.ZooError, match="17 tokens are more than the model's max_length of 16"):
        model.apply(variables, np.zeros((1, 17), np.int32))
    with pytest.raises(zoo.ZooError, match="20 tokens are more than the model's max_length of 16"):
        model.init_state(1, 20)
    with pytest.raises(zoo.ZooError, match="token 11 is outside the vocabulary of 11"):
        model.apply(variables, np.full((1, 3), 11, np.int32))


def test_flops_are_those_of_the_arithmetic_also_where_blocks_are_skipped():
    """Products with weights, and both of attention's with the whole T x T."""
    weights = 12 * 12 * 768**2 + 768 * 50257
    assert zoo.model_info("gpt2").flops == 2 * 1024 * weights + 12 * 4 * 1024**2 * 768
