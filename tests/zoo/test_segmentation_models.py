"""U-Net and DeepLab: the papers' sizes and counts, images of any size, a residual network that dilates."""

import jax
import numpy as np
import pytest

import zoo
from zoo.registry import abstract_variables, count_parameters

RNG = np.random.default_rng(0)


def drawn(name, shape, **fields):
    model = zoo.create_model(name, **fields)
    images = RNG.normal(size=(2, *shape)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def test_unet_has_the_papers_sizes():
    model = zoo.create_model("unet")
    variables = abstract_variables(model, *zoo.model_info("unet").example())
    for side, out in ((572, 388), (188, 4), (700, 516)):
        logits = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, side, side, 1), np.float32))
        assert logits.shape == (1, out, out, 2)
        assert side - 2 * model.margin == out
    features = zoo.model_info("unet").features
    assert [features[f"stage{i}"][2] for i in range(1, 6)] == [64, 128, 256, 512, 1024]
    assert features["stage5"][:2] == (28, 28)


@pytest.mark.parametrize("side", [512, 172, 573])
def test_unet_refuses_sides_that_valid_convolutions_do_not_halve(side):
    model = zoo.create_model("unet")
    with pytest.raises(zoo.ZooError, match=f"takes sides of 188, 204, 220, ... pixels, not {side} x {side}"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 1), np.float32))


def test_unet_of_valid_convolutions_sees_the_same_in_a_part():
    """Its logits depend on the pixels of their own window alone, so that tiles are exact."""
    model, variables, images = drawn("unet", (60, 60, 1), widths=(3, 4, 5))
    whole = model.apply(variables, images)
    part = model.apply(variables, images[:, 8:56, 4:52])
    np.testing.assert_allclose(part, whole[:, 8 : 8 + part.shape[1], 4 : 4 + part.shape[2]], atol=1e-5)


def test_a_small_unet_pads_an_image_with_its_edge():
    model, variables, images = drawn("unet_small", (13, 18, 2), widths=(3, 4, 5))
    padded = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")
    found = model.apply(variables, images)
    assert found.shape == (2, 13, 18, 2)
    np.testing.assert_allclose(found, model.apply(variables, padded)[:, :13, :18], atol=1e-5)


TORCHVISION = {  # torchvision's documentation, whose weights have a second head
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_published_parameter_counts_of_segmenters(name):
    model = zoo.create_model(name, auxiliary=True)
    variables = abstract_variables(model, *zoo.model_info(name).example())
    assert count_parameters(variables) == TORCHVISION[name]
    second = [path for path in variables["params"] if path.startswith("aux_classifier")]
    plain = abstract_variables(zoo.create_model(name), *zoo.model_info(name).example())["params"]
    assert sorted({*variables["params"]} - {*plain}) == sorted(second)


def test_the_second_head_is_a_feature():
    fields = {"stage_sizes": (1, 1, 1, 1), "width": 8, "auxiliary": True, "num_classes": 3}
    model, variables, images = drawn("fcn_resnet50", (33, 24, 3), **fields)
    logits, changed = model.apply(variables, images, mutable=["features"])
    assert changed["features"]["auxiliary"].shape == logits.shape == (2, 33, 24, 3)
    assert changed["features"]["stage4"].shape == (2, 5, 3, 256)


@pytest.mark.parametrize(("stride", "sides"), [(None, (16, 8, 4, 2)), (16, (16, 8, 4, 4)), (8, (16, 8, 8, 8))])
def test_a_residual_network_dilates_beyond_its_output_stride(stride, sides):
    fields = {"stage_sizes": (1, 1, 2, 1), "width": 4, "num_classes": None}
    model, variables, images = drawn("resnet50", (64, 64, 3), output_stride=stride, **fields)
    _, changed = model.apply(variables, images, mutable=["features"])
    assert tuple(changed["features"][f"stage{i}"].shape[1] for i in range(1, 5)) == sides
    plain = zoo.create_model("resnet50", **fields)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, plain.init(jax.random.key(0), images))
