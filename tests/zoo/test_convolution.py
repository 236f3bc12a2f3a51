"""The convolution with a fast kernel gradient is XLA's convolution, forward and backward."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import zoo
from zoo.ops import convolution
from zoo.ops.convolution import GROUP_BYTES, conv_general_dilated, fast_kernel_gradients

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {  # input shape, kernel shape, strides, padding
    "3x3": ((6, 9, 8, 5), (3, 3, 5, 7), (1, 1), ((1, 1), (1, 1))),
    "3x3 of 3 channels": ((6, 9, 8, 3), (3, 3, 3, 7), (1, 1), ((1, 1), (1, 1))),
    "7x7 strided, rows left over": ((5, 16, 15, 3), (7, 7, 3, 4), (2, 2), ((3, 3), (3, 3))),
    "1x1 strided": ((4, 9, 9, 6), (1, 1, 6, 3), (2, 2), ((0, 0), (0, 0))),
    "uneven": ((4, 9, 12, 6), (2, 5, 6, 3), (3, 1), ((0, 2), (1, 0))),
    "SAME": ((4, 9, 12, 6), (3, 3, 6, 3), (2, 2), "SAME"),
    "VALID": ((4, 9, 12, 6), (5, 5, 6, 3), (1, 1), "VALID"),
    "rows beyond the map": ((4, 9, 8, 5), (4, 5, 5, 7), (1, 1), ((3, 1), (0, 4))),
    "groups of images": ((8, 64, 64, 16), (3, 3, 16, 8), (1, 1), ((1, 1), (1, 1))),
    "groups of patches": ((8, 64, 64, 16), (3, 3, 16, 8), (2, 2), ((1, 1), (1, 1))),
    "whole maps": ((3, 8, 7, 64), (3, 3, 64, 72), (1, 1), ((1, 1), (1, 1))),
    "tiles": ((4, 9, 14, 72), (3, 3, 72, 64), (1, 1), ((1, 1), (1, 1))),
    "groups of tiles": ((4, 32, 32, 64), (3, 3, 64, 64), (1, 1), ((1, 1), (1, 1))),
}
WINOGRAD = ("whole maps", "tiles", "groups of tiles")


def case(name, dtype=jnp.float32):
    shape, kernel_shape, strides, padding = CASES[name]
    x, kernel = (jax.random.normal(jax.random.key(i), s, dtype) for i, s in enumerate((shape, kernel_shape)))

    def weighted(conv):
        def loss(x, kernel):
            y = conv(x, kernel, strides, padding, dimension_numbers=NHWC)
            return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    return x, kernel, weighted


def check(name):
    x, kernel, weighted = case(name)
    (_, expected), expected_gradients = weighted(lax.conv_general_dilated)(x, kernel)
    with fast_kernel_gradients():
        (_, y), gradients = weighted(conv_general_dilated)(x, kernel)
    for ours, theirs in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert jnp.abs(ours - theirs).max() <= 1e-5 * jnp.abs(theirs).max()  # float32, another order of the sums


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_xlas(name):
    check(name)


def test_whole_maps_add_up_over_groups(monkeypatch):
    monkeypatch.setattr(convolution, "TILE_BYTES", 1)
    check("whole maps")


@pytest.mark.parametrize("name", CASES)
def test_winograd_multiplies_by_a_transformed_kernel_and_nothing_else_does(name):
    x, kernel, weighted = case(name)
    with fast_kernel_gradients():
        program = str(weighted(conv_general_dilated).trace(x, kernel).jaxpr)
    assert (f"f32[36,{kernel.shape[2]},{kernel.shape[3]}]" in program) == (name in WINOGRAD)


@pytest.mark.parametrize(
    ("name", "multiplied"),
    [("groups of images", 3 * (16 + 8)), ("groups of patches", 9 * 16 + 8), ("groups of tiles", 3 * (64 + 64))],
)
def test_cases_take_more_than_one_group(name, multiplied):
    (images, height, width, _), _, (stride, _), _ = CASES[name]
    assert 4 * images * height * width // stride**2 * multiplied > 1.1 * GROUP_BYTES


@pytest.mark.parametrize("name", ["whole maps", "tiles", "groups of images"])
def test_devices_convolve_their_own_images(name):
    x, kernel, weighted = case(name)
    x = x[:2]
    (_, expected), expected_gradients = weighted(lax.conv_general_dilated)(x, kernel)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    with fast_kernel_gradients(), jax.set_mesh(mesh):
        placed = jax.device_put(x, PartitionSpec("data")), jax.device_put(kernel, PartitionSpec())
        compiled = weighted(conv_general_dilated).lower(*placed).compile()
    assert set(re.findall(r"all-\w+", compiled.as_text())) == {"all-reduce"}  # of the kernel's gradient and the loss
    (_, y), gradients = compiled(*placed)
    for ours, theirs in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert jnp.abs(ours - theirs).max() <= 1e-5 * jnp.abs(theirs).max()


def test_bfloat16_adds_up_in_float32():
    x, kernel, weighted = case("3x3", jnp.bfloat16)
    with fast_kernel_gradients():
        (_, y), (by_x, by_kernel) = weighted(conv_general_dilated)(x, kernel)
    assert {y.dtype, by_x.dtype, by_kernel.dtype} == {jnp.dtype("bfloat16")}
    _, (_, exact) = weighted(lax.conv_general_dilated)(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert jnp.abs(by_kernel - exact).max() <= 2**-7 * jnp.abs(exact).max()


def test_models_outside_of_training_can_be_differentiated_forwards():
    model = zoo.create_model("resnet8", width=4)
    images = jnp.ones((1, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, tangent = jax.jit(lambda x: jax.jvp(lambda x: model.apply(variables, x), (x,), (x,)))(images)
    assert jnp.isfinite(tangent).all()


def test_grouped_and_dilated_convolutions_are_left_to_xla():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    settings = {"dimension_numbers": NHWC, "feature_group_count": 4, "rhs_dilation": (2, 2)}
    with fast_kernel_gradients():
        ours = conv_general_dilated(x, kernel, (1, 1), "SAME", **settings)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **settings))


@pytest.mark.parametrize("name", CASES)
def test_other_platforms_have_xlas_program(name):
    x, kernel, weighted = case(name)

    def operations(conv, platform):
        program = weighted(conv).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        counts = Counter(re.findall(r"stablehlo\.\w+|convolution\(.*", program))
        for of_the_choice in ("case", "constant", "return"):  # a case with one branch, that XLA takes at once
            counts.pop(f"stablehlo.{of_the_choice}", None)
        return counts

    with fast_kernel_gradients():
        ours = {platform: operations(conv_general_dilated, platform) for platform in ("cpu", "tpu", "cuda")}
    expected = operations(lax.conv_general_dilated, "tpu")
    assert ours["tpu"] == ours["cuda"] == expected != ours["cpu"]
