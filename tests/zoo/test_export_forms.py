"""The inference form: batch norms in kernels, int8 and bfloat16 weights, preprocessing in JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import new, variables_of
from PIL import Image

import zoo
from zoo.arrays import named_leaves
from zoo.errors import ZooError
from zoo.export.folding import fold
from zoo.export.preprocessing import resized
from zoo.export.storing import SCALE, store
from zoo.inputs import ImageInputs
from zoo.ops.gelu import gelu
from zoo.ops.portable import portable

# model: norms that go into a kernel, norms that stay as scale and shift
NORMS = {"resnet8": (7, 0), "vgg11_bn": (8, 0), "mobilenet_v2": (52, 0), "mobilenet_v3_small": (34, 0)}
NORMS |= {"efficientnet_lite0": (49, 0), "wide_resnet28_10": (4, 3), "airbench": (3, 3), "densenet121": (5, 8)}
SLOW = ("efficientnet_lite0", "mobilenet_v2")


def folded(name, **fields):
    model, (x, _) = new(name, **fields)
    variables = variables_of(model, x)
    rng = np.random.default_rng(2)  # statistics and scales of a trained model: far from 0 and 1, some negative

    def trained(path, leaf):
        last = path[-1].key
        if last in ("mean", "scale") and leaf.ndim == 1:
            return jnp.asarray(rng.normal(1, 1, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype) if last == "var" else leaf

    variables = jax.tree_util.tree_map_with_path(trained, variables)
    example = (jax.ShapeDtypeStruct(x.shape, x.dtype),), {}
    return model, variables, x, fold(model, variables, example)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NORMS])
def test_folded_norms_are_exact_to_rounding(name):
    model, variables, x, form = folded(name)
    expected, found = jax.jit(model.apply)(variables, x), jax.jit(form.apply)(form.variables, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3
    assert (len(form.kernels), len(form.scales)) == NORMS[name]


def test_folded_norms_are_gone_from_the_program():
    _, variables, x, form = folded("resnet8")
    assert "batch_stats" in variables
    assert "batch_stats" not in form.variables
    assert not any("bn" in path for path in named_leaves(form.variables))
    program = str(jax.make_jaxpr(form.apply)(form.variables, x))
    assert "rsqrt" not in program
    assert " sub " not in program


def test_a_kernel_whose_output_goes_elsewhere_too_keeps_its_scale():
    """A pre-activation block of the stem's width adds the stem's output to its own."""
    model, variables, x, form = folded("wide_resnet28_10", width=16)
    assert "layer1_0/bn1" in form.scales
    expected, found = model.apply(variables, x), form.apply(form.variables, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_folding_needs_running_statistics():
    model, variables, x, _ = folded("resnet8")
    with pytest.raises(ZooError, match=r"the norm bn1 has no running mean and var in batch_stats"):
        fold(model, {**variables, "batch_stats": {}}, ((jax.ShapeDtypeStruct(x.shape, x.dtype),), {}))


def test_int8_weights_are_wrong_by_at_most_half_a_step():
    variables = {"params": {"dense": {"kernel": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)}}}
    variables["params"]["dense"]["kernel"][:, 3] = 0
    variables["params"]["dense"]["bias"] = np.ones(8, np.float32)
    stored = store(variables, "int8")
    kernel, found = variables["params"]["dense"]["kernel"], stored.restore(stored.arrays)["params"]["dense"]
    assert stored.arrays["params/dense/kernel"].dtype == np.int8
    step = stored.arrays["params/dense/kernel" + SCALE]
    assert step.shape == (1, 8)
    assert (np.abs(found["kernel"] - kernel) <= step / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(found["kernel"][:, 3], 0)
    np.testing.assert_array_equal(found["bias"], 1)


@pytest.mark.parametrize(("dtype", "error", "smaller"), [("int8", 0.05, 3.5), ("bfloat16", 0.02, 1.9)])
def test_smaller_weights_change_the_logits_little(dtype, error, smaller):
    """Of ResNet-20 with its trained weights: the largest difference relative to the largest logit."""
    model, variables, _ = zoo.load("resnet20")
    form = fold(model, variables, ((jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),), {}))
    whole, stored = store(form.variables), store(form.variables, dtype)
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(form.apply(form.variables, x))
    found = np.asarray(form.apply(stored.restore(stored.arrays), x))
    assert np.abs(found - expected).max() < error * np.abs(expected).max()
    assert sum(a.nbytes for a in whole.arrays.values()) > smaller * sum(a.nbytes for a in stored.arrays.values())


SETTINGS = [{}, {"crop": 0.875}, {"crop": 0.95, "margin": "down"}, {"squash": True}, {"crop": 0.9, "squash": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(100, 77), (32, 48), (20, 30), (61, 200), (300, 50)], ids=str)
def test_preprocessing_in_jax_is_pillows_within_one_level(settings, size):
    inputs = ImageInputs((32, 48, 3), (0.5,) * 3, (0.5,) * 3, (), **settings)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = inputs.pixels(Image.fromarray(pixels)).astype(int)
    assert np.abs(np.asarray(resized(inputs, pixels[None]))[0] - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_other_filters_are_pillows_within_one_level_where_nothing_is_clipped(interpolation):
    inputs = ImageInputs((32, 48, 3), (0.5,) * 3, (0.5,) * 3, (), interpolation=interpolation)
    pixels = np.random.default_rng(0).integers(64, 192, (60, 70, 3)).astype(np.uint8)
    expected = inputs.pixels(Image.fromarray(pixels)).astype(int)
    assert np.abs(np.asarray(resized(inputs, pixels[None]))[0] - expected).max() <= 1


def test_nearest_is_refused():
    inputs = ImageInputs((8, 8, 3), (0.5,) * 3, (0.5,) * 3, (), interpolation="nearest")
    model, (x, _) = new("resnet8")
    run = zoo.Run(model, variables_of(model, x), dataclasses.replace(inputs))
    with pytest.raises(ZooError, match="resizes by bilinear, bicubic, lanczos, not by 'nearest'"):
        zoo.export.export(run, "never", preprocess=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_written_out_is_gelu(dtype):
    x = jnp.linspace(-12, 12, 4801).astype(dtype)
    with portable():
        found = gelu(x)
        assert "erf" not in str(jax.make_jaxpr(lambda x: gelu(x))(x))
    expected = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=1e-6 if dtype == "float32" else 0.04)
