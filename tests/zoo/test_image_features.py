"""Features of image models: their names, the strides of stages, `pooled`, and models without a head."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_registry import DETECTORS, TINY, shapes

import zoo
from zoo.features import adding
from zoo.registry import abstract_variables
from zoo.weights import save_native

IMAGE_MODELS = [name for name in zoo.list_models() if len(zoo.model_info(name).input_shape) == 3]
SEGMENTERS = [name for name in IMAGE_MODELS if getattr(zoo.model_info(name).module_class, "segments", False)]


@pytest.mark.parametrize("name", TINY)
def test_features_come_only_on_request_and_by_the_documented_names(name):
    fields, shape = TINY[name]
    model = zoo.create_model(name, **fields)
    images = np.ones((1, *shape), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert "features" not in variables
    logits, changed = jax.eval_shape(functools.partial(model.apply, mutable=["features"]), variables, images)
    assert logits == jax.eval_shape(model.apply, variables, images)
    assert set(changed["features"]) == set(zoo.model_info(name).features)
    names = documented_features(type(model))[0]
    if "..." in names:  # as many as the model has stages
        last = len(model.stage_sizes) + 1
        names = names - {"..."} | {f"stage{i}" for i in range(1, last)}
    assert set(changed["features"]) == names


def documented_features(module_class):
    """Names, and strides of stages, as a docstring lists them: `Features: stage1, stage2 (at strides 4, 8), pooled.`"""
    text = " ".join(module_class.__doc__.split()).split("Features: ")[1]
    sentence = re.split(r"(?<!\.)\.(?= |$)", text)[0]
    strides = re.search(r"\(.*strides ([\d, ]+)", sentence)
    names = set(re.sub(r"\(.*?\)", "", sentence).replace(" ", "").split(","))
    return names, [int(stride) for stride in strides[1].split(",")] if strides else None


def test_documented_features_are_read_from_a_docstring():
    class Model:
        """Images to logits. Features: stem, stage1, stage2, ... (at strides 4, 8 there), pooled. Then more, stage9."""

    assert documented_features(Model) == ({"stem", "stage1", "stage2", "...", "pooled"}, [4, 8])


def test_resnet_stages_have_strides_4_to_32():
    features = zoo.model_info("resnet50").features
    assert [features[f"stage{i}"] for i in range(1, 5)] == [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("simple_cnn", "lenet5", "resnet8")])
def test_stages_have_the_documented_strides(name):
    """To the nearest power of two, since convolutions without padding lose pixels at the edge."""
    info = zoo.model_info(name)
    strides = documented_features(info.module_class)[1]
    sides = [info.features[f"stage{i}"][0] for i in range(1, len(strides) + 1)]
    assert f"stage{len(strides) + 1}" not in info.features
    assert [2 ** round(math.log2(info.input_shape[0] / side)) for side in sides] == strides


@pytest.mark.parametrize(
    "name", [name for name in zoo.list_models(family="cnn") if zoo.model_info(name).input_shape[0] == 224]
)
def test_stages_of_imagenet_models_have_strides_4_to_32(name):
    features = zoo.model_info(name).features
    sides = [features[f"stage{i}"][0] for i in range(1, 5)]
    assert sides == ([55, 27, 13, 6] if name == "alexnet" else [56, 28, 14, 7])


@pytest.mark.parametrize("name", [*(name for name in TINY if name not in SEGMENTERS), "vit_tiny32"])
def test_without_classes_a_model_has_no_head_and_gives_what_the_head_reads(name):
    fields, shape = TINY.get(name, ({}, (224, 224, 3)))
    model, headless = (zoo.create_model(name, **fields, num_classes=classes) for classes in (3, None))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables, without = abstract_variables(model, [images]), abstract_variables(headless, [images])
    head = variables["params"].pop(model.head)
    assert shapes(without) == shapes(variables)
    pooled = jax.eval_shape(headless.apply, without, images)
    assert pooled.shape == (2, head["kernel"].shape[0])
    complete = {**variables, "params": {**variables["params"], model.head: head}}
    logits, changed = jax.eval_shape(functools.partial(model.apply, mutable=["features"]), complete, images)
    assert logits.shape == (2, 3)
    assert changed["features"]["pooled"] == pooled
    again, changed = jax.eval_shape(functools.partial(headless.apply, mutable=["features"]), without, images)
    assert changed["features"]["pooled"] == again == pooled


@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_the_head_multiplies_pooled(name):
    fields, shape = TINY[name]
    model, images = zoo.create_model(name, **fields), np.random.default_rng(0).normal(size=(2, *shape))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    pooled = jax.jit(model.clone(num_classes=None).apply)(variables, images)
    kernel, bias = (variables["params"][model.head][part] for part in ("kernel", "bias"))
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(pooled @ kernel + bias, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
@pytest.mark.parametrize("name", ["lenet5", "vgg11_bn", "vit_tiny32"])
def test_a_model_without_classes_reads_weights_with_a_head(name, save, tmp_path):
    fields, shape = TINY.get(name, ({"hidden_size": 8, "num_heads": 2, "num_layers": 1}, (224, 224, 3)))
    model, rng = zoo.create_model(name, **fields, num_classes=3), np.random.default_rng(0)
    abstract = abstract_variables(model, [jax.ShapeDtypeStruct((1, *shape), jnp.float32)])
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)
    save(variables, tmp_path / "weights.safetensors")
    headless = model.clone(num_classes=None)
    found = zoo.load_weights(headless, tmp_path / "weights.safetensors", shape)
    del variables["params"][model.head]
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_the_zoos_own_weights_without_a_head():
    run, images = zoo.load("resnet20", num_classes=None), np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    whole = zoo.load("resnet20")
    _, changed = jax.jit(functools.partial(whole.model.apply, mutable=["features"]))(whole.variables, images)
    pooled = jax.jit(run.model.apply)(run.variables, images)
    np.testing.assert_allclose(pooled, changed["features"]["pooled"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        name if name in (*TINY, "vit_tiny32") else pytest.param(name, marks=pytest.mark.slow)
        for name in IMAGE_MODELS
        if name not in DETECTORS
    ],
)
def test_every_image_model_but_segmenters_has_pooled_and_only_cnns_have_stages(name):
    info = zoo.model_info(name)
    if name in SEGMENTERS:
        assert "pooled" not in info.features
    else:
        assert len(info.features["pooled"]) == 1
    assert any(feature.startswith("stage") for feature in info.features) == (info.family == "cnn")


def test_features_can_be_changed_for_a_gradient():
    model = zoo.create_model("resnet8", width=4)
    images = jnp.ones((1, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    delta = jnp.full((1, 2, 2, 16), 0.5)
    before, changed = model.apply(variables, images, mutable=["features"])
    with adding("stage3", delta):
        after, moved = model.apply(variables, images, mutable=["features"])
    np.testing.assert_allclose(moved["features"]["stage3"], changed["features"]["stage3"] + 0.5, rtol=1e-6)
    expected = before + 0.5 * jnp.sum(variables["params"]["fc"]["kernel"], axis=0)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.apply(variables, images), before)
