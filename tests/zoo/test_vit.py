"""The Vision Transformer: published sizes, what its parts are, scanned layers, and what wrong input gets."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.registry import abstract_variables
from zoo.transformer.layers import stacked, unstacked
from zoo.transformer.vit import cubic
from zoo.weights import read_safetensors, save_native, write_safetensors

PUBLISHED = {  # of the authors' (base, large) and of DeiT's and AugReg's (tiny, small) checkpoints, with 1,000 classes
    "vit_tiny16": 5_717_416,
    "vit_small16": 22_050_664,
    "vit_base16": 86_567_656,
    "vit_large16": 304_326_632,
    "vit_small32": 22_878_952,
    "vit_base32": 88_224_232,
    "vit_large32": 306_535_400,
}
NAMES = zoo.list_models("vit_*")
TINY = {
    **{"num_classes": 3, "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_layers": 2, "num_heads": 4},
    "mlp_size": 24,
}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def tiny(**fields):
    """A tiny model and its variables, all of them drawn."""
    model = zoo.create_model("vit_tiny16", **{**TINY, **fields})
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype), variables)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


def test_the_count_of_the_one_that_nobody_published():
    """tiny at 32: of the same at 16, with four times the pixels a patch and a quarter of the positions."""
    expected = PUBLISHED["vit_tiny16"] + 192 * 3 * (32**2 - 16**2) - 192 * (14**2 - 7**2)
    assert zoo.model_info("vit_tiny32").parameters == expected
    assert set(NAMES) == {*PUBLISHED, "vit_tiny32"}


def test_flops_are_those_of_the_arithmetic():
    tokens, width = 14**2 + 1, 768
    weights = 12 * 12 * width**2 * tokens + 14**2 * 3 * 16**2 * width + width * 1000
    assert zoo.model_info("vit_base16").flops == 2 * weights + 12 * 4 * tokens**2 * width


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(name, dtype):
    model, ((example,), _) = zoo.create_model(name, dtype=dtype), zoo.model_info(name).example(2)
    variables = abstract_variables(model, [example])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, example)
    assert (out.shape, out.dtype) == ((2, 1000), jnp.dtype(dtype))


@pytest.mark.parametrize("fields", [{}, {"pooling": "mean"}, {"scan_layers": True}])
def test_gradient_flows_to_every_parameter(fields):
    model, variables = tiny(**fields, dropout_rate=0.1)

    def loss(params):
        out = model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all()
        keys_bias = "['key']['bias']" in jax.tree_util.keystr(path)  # attention does not change when all keys move
        assert np.abs(leaf).max() > 0.0 or keys_bias


def test_it_begins_with_no_opinion():
    model = zoo.create_model("vit_tiny16", **TINY)
    assert not np.any(model.apply(model.init(jax.random.key(0), IMAGES), IMAGES))


def test_patches_are_tokens_row_by_row():
    """Token i of a model without layers or positions depends on patch i alone, and is a dense layer of its pixels."""
    model, variables = tiny()
    params = dict(variables["params"], positions=np.zeros((1, 5, 16), np.float32))
    _, changed = model.apply({"params": params}, IMAGES, mutable=["features"])
    patches = IMAGES.reshape(3, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, 48)
    expected = patches @ params["patches"]["kernel"].reshape(48, 16) + params["patches"]["bias"]
    embedded = changed["features"]["embedded"]
    np.testing.assert_allclose(embedded[:, 1:], expected, **TOLERANCE)
    np.testing.assert_array_equal(embedded[:, 0], np.broadcast_to(params["class_token"][0], (3, 16)))


def test_without_positions_the_order_of_patches_does_not_matter():
    model, variables = tiny()
    mirrored = IMAGES.reshape(3, 8, 2, 4, 3)[:, :, ::-1].reshape(IMAGES.shape)  # the two columns of patches, swapped
    still = {"params": {**variables["params"], "positions": np.zeros((1, 5, 16), np.float32)}}
    np.testing.assert_allclose(model.apply(still, mirrored), model.apply(still, IMAGES), **TOLERANCE)
    assert np.abs(model.apply(variables, mirrored) - model.apply(variables, IMAGES)).max() > 1e-3


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_features_come_by_the_documented_names(pooling):
    model, variables = tiny(pooling=pooling)
    out, changed = model.apply(variables, IMAGES, mutable=["features"])
    np.testing.assert_array_equal(out, model.apply(variables, IMAGES))
    features, tokens = changed["features"], 5 if pooling == "token" else 4
    assert set(features) == {"embedded", "layers", "normalised", "pooled"}
    assert set(features["layers"]) == {"layer0", "layer1"}
    weights = features["layers"]["layer1"]["attention"]["weights"]
    assert weights.shape == (3, 4, tokens, tokens)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)
    normalised = np.asarray(features["normalised"])
    pooled = normalised[:, 0] if pooling == "token" else normalised.mean(axis=1)
    np.testing.assert_allclose(features["pooled"], pooled, **TOLERANCE)
    head = variables["params"]["head"]
    np.testing.assert_allclose(out, pooled @ head["kernel"] + head["bias"], **TOLERANCE)


def test_scanned_layers_are_the_same_layers():
    model, variables = tiny()
    scanned = model.clone(scan_layers=True)
    shapes = abstract_variables(scanned, [jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)])
    params = stacked(variables["params"], shapes["params"])
    jax.tree.map(np.testing.assert_array_equal, unstacked(params), variables["params"])
    out, changed = scanned.apply({"params": params}, IMAGES, mutable=["features"])
    expected, wanted = model.apply(variables, IMAGES, mutable=["features"])
    np.testing.assert_allclose(out, expected, **TOLERANCE)
    for a, b in zip(jax.tree.leaves_with_path(changed), jax.tree.leaves_with_path(wanted), strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1], b[1], **TOLERANCE)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (2, 8), r"ViT takes images \[batch, height, width, channels\] .*, not \(2, 8\)"),
        ({}, (2, 12, 12, 3), "images are 12 x 12 pixels; the ViT's image_size is 8"),
        ({}, (2, 8, 4, 3), "images are 8 x 4 pixels; the ViT's image_size is 8"),
        ({"image_size": 10}, (2, 10, 10, 3), "image_size 10 must be a multiple of patch_size 4"),
        ({"num_heads": 3}, (2, 8, 8, 3), "hidden_size 16 must be a multiple of num_heads 3"),
    ],
)
def test_wrong_input_is_told_in_a_line(fields, shape, message):
    with pytest.raises(zoo.ZooError, match=message) as error:
        zoo.create_model("vit_tiny16", **{**TINY, **fields}).init(jax.random.key(0), np.zeros(shape, np.float32))
    assert "\n" not in str(error.value)


def test_wrong_fields():
    with pytest.raises(zoo.ZooError, match="pooling must be one of 'token', 'mean', not 'max'"):
        zoo.create_model("vit_tiny16", pooling="max")
    with pytest.raises(zoo.ZooError, match="patch_size must be at least 1, not 0"):
        zoo.create_model("vit_tiny16", patch_size=0)


# Hugging Face's folders.


@pytest.fixture
def folder(tmp_path):
    zoo.save_pretrained(*tiny(), tmp_path / "vit")
    return tmp_path / "vit"


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_saved_is_loaded(scan_layers, tmp_path):
    model, variables = tiny(scan_layers=scan_layers, patch_size=2, activation="gelu_tanh")
    zoo.save_pretrained(model, variables, tmp_path / "vit")
    again, loaded = zoo.from_pretrained(tmp_path / "vit", scan_layers=scan_layers)
    assert again.settled == model.settled
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    for save in (zoo.save_weights, save_native):
        save(variables, tmp_path / "w.safetensors", overwrite=True)
        assert not any("stacked" in name for name in read_safetensors(tmp_path / "w.safetensors"))
        jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(model, tmp_path / "w.safetensors"), variables)


def test_a_convolution_lies_outputs_first(folder):
    kernel = tiny()[1]["params"]["patches"]["kernel"]
    tensor = read_safetensors(folder / "model.safetensors")["vit.embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(tensor, kernel.transpose(3, 2, 0, 1))


def test_other_classes_get_another_head(folder):
    with pytest.warns(UserWarning, match="the head 'head' \\(7\\) is drawn anew"):
        _, variables = zoo.from_pretrained(folder, num_classes=7)
    params, expected = variables["params"], tiny()[1]["params"]
    assert params.pop("head")["kernel"].shape == (16, 7)
    jax.tree.map(np.testing.assert_array_equal, params, {key: expected[key] for key in expected if key != "head"})


def test_a_model_without_classes(folder, tmp_path):
    model, variables = zoo.from_pretrained(folder, num_classes=None)
    expected = {name: leaf for name, leaf in tiny()[1]["params"].items() if name != "head"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)
    with pytest.raises(zoo.ZooError, match=r"a ViT without classes has no config\.json"):
        zoo.save_pretrained(model, variables, tmp_path / "headless")


def test_positions_of_another_size_are_resized(folder, tmp_path):
    with pytest.warns(UserWarning, match="positions of 2 x 2 patches are resized to 4 x 4"):
        model, variables = zoo.from_pretrained(folder, image_size=16)
    assert model.apply(variables, np.zeros((1, 16, 16, 3))).shape == (1, 3)
    before, after = tiny()[1]["params"]["positions"], variables["params"]["positions"]
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    np.testing.assert_allclose(after[:, 1:].mean(axis=1), before[:, 1:].mean(axis=1), **TOLERANCE)
    save_native(tiny()[1], tmp_path / "ours.safetensors")
    with pytest.warns(UserWarning, match="resized to 4 x 4"):
        again = zoo.load_weights(model, tmp_path / "ours.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 7), (7, 3)])
def test_cubic_interpolation_is_of_weights_that_add_to_one(old, new):
    matrix = cubic(old, new)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    if old == new:
        np.testing.assert_array_equal(matrix, np.eye(old))


def test_positions_that_are_of_no_square_are_told(folder):
    tensors = read_safetensors(folder / "model.safetensors")
    name = "vit.embeddings.position_embeddings"
    write_safetensors({**tensors, name: tensors[name][:, :4]}, folder / "model.safetensors", overwrite=True)
    with pytest.raises(zoo.ZooError, match=rf"misshapen: {name} \(\(1, 4, 16\), not \(1, 5, 16\)\)"):
        zoo.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"qkv_bias": False}, "qkv_bias must be true, not false"),
        ({"num_channels": 1}, "num_channels must be 3, not 1"),
        ({"image_size": [8, 16]}, r"image_size must be square, not \[8, 16\]"),
        ({"image_size": "8"}, "image_size must be an integer of at least 1, not '8'"),
        ({"hidden_act": "silu"}, "unknown activation 'silu'; there are gelu, "),
        ({"image_size": 10}, "image_size 10 must be a multiple of patch_size 4"),
        ({"num_hidden_layers": 3}, r"missing: vit.encoder.layer.2.attention.attention.key.bias"),
        ({"id2label": {}}, "num_classes must be at least 1, not 0"),
        ({"model_type": "gpt2"}, "n_embd must be an integer of at least 1, not None"),
    ],
)
def test_configs_that_do_not_fit(folder, values, match):
    change(folder, **values)
    with pytest.raises(zoo.ZooError, match=match) as error:
        zoo.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_model(folder):
    write_safetensors({"transformer.wte.weight": np.zeros((3, 3))}, folder / "model.safetensors", overwrite=True)
    with pytest.raises(zoo.ZooError, match=r"does not fit ViT: missing: classifier.bias.*unexpected: transformer.wte"):
        zoo.from_pretrained(folder)


def test_what_hugging_faces_have_not_is_not_saved(tmp_path):
    with pytest.raises(zoo.ZooError, match="Hugging Face's vit has pooling 'token', not 'mean'"):
        zoo.save_pretrained(*tiny(pooling="mean"), tmp_path / "vit")
    grey = jax.eval_shape(tiny()[0].init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(zoo.ZooError, match="the variables do not belong to this model"):
        zoo.save_pretrained(tiny()[0], grey, tmp_path / "vit")
    assert not (tmp_path / "vit").exists()


def test_layers_are_dropped_for_whole_examples():
    """With a rate near 1 the last layer's outputs are dropped, so that its input is what comes out; the first stays."""
    model, variables = tiny()
    dropping = model.clone(drop_path_rate=0.999, num_layers=2)
    x = np.random.default_rng(0).normal(size=(4, model.image_size, model.image_size, 3)).astype(np.float32)
    variables = dropping.init(jax.random.key(0), x)
    apply = functools.partial(dropping.apply, variables, x, mutable=["features"])
    _, seen = apply(train=True, rngs={"dropout": jax.random.key(1)})
    layers = seen["features"]["layers"]
    np.testing.assert_array_equal(layers["layer1"]["hidden"], layers["layer0"]["hidden"])
    _, still = apply()
    assert np.abs(np.subtract(*(still["features"]["layers"][f"layer{i}"]["hidden"] for i in range(2)))).max() > 1e-3
    np.testing.assert_allclose(layers["layer0"]["hidden"], still["features"]["layers"]["layer0"]["hidden"], atol=1e-6)
    with pytest.raises(zoo.ZooError, match="scan_layers needs equal layers: drop_path_rate grows with depth"):
        dropping.clone(scan_layers=True).init(jax.random.key(0), x)
