"""FLOPs are those of the arithmetic: counted from the jaxpr, two a multiply-add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

import zoo
from zoo.registry import abstract_variables


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_products():
    assert zoo.count_flops(jnp.dot, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7
    assert (
        zoo.count_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), array(4, 3, 5), array(4, 5, 7))
        == 2 * 4 * 3 * 5 * 7
    )


def test_loops_count_every_round():
    def loop(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, length=11)[0]

    assert zoo.count_flops(loop, array(2, 5), array(5, 5)) == 11 * 2 * 2 * 25
    assert zoo.count_flops(jax.jit(loop), array(2, 5), array(5, 5)) == 11 * 2 * 2 * 25
    assert zoo.count_flops(lambda x, w: lax.fori_loop(0, 6, lambda _, x: x @ w, x), array(2, 5), array(5, 5)) == 6 * 100


def test_a_kernels_whole_grid_counts():
    def product(x, w, out):
        out[...] = x[...] @ w[...]

    def blocks(x, w):
        spec = pl.BlockSpec((8, 5), lambda i: (i, 0))
        whole = pl.BlockSpec((5, 5), lambda i: (0, 0))
        return pl.pallas_call(product, grid=(3,), in_specs=[spec, whole], out_specs=spec, out_shape=array(24, 5))(x, w)

    assert zoo.count_flops(blocks, array(24, 5), array(5, 5)) == 2 * 24 * 25


def test_what_each_device_does_on_its_own_rows_counts_for_all():
    mesh, rows = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor")), PartitionSpec("data")
    for axes in ({"data"}, {"data", "tensor"}):
        specs = {"in_specs": (rows, PartitionSpec()), "out_specs": rows}
        spread = jax.shard_map(jnp.dot, mesh=mesh, **specs, axis_names=axes, check_vma=False)
        each = 1 if axes == {"data"} else 2  # devices along `tensor` all do the same
        assert zoo.count_flops(jax.jit(spread), array(8, 5), array(5, 5)) == each * 2 * 8 * 25


def test_of_a_cond_the_dearest_branch_counts():
    def choose(flag, x, w):
        return lax.cond(flag, lambda: x @ w, lambda: x @ w @ w)

    assert zoo.count_flops(choose, jax.ShapeDtypeStruct((), bool), array(2, 5), array(5, 5)) == 2 * 2 * 2 * 25


def test_recomputation_counts_under_remat():
    def loss(w, x):
        return jax.checkpoint(lambda w: jnp.tanh(x @ w))(w).sum()

    product = 2 * 2 * 5 * 3
    assert zoo.count_flops(jax.grad(loss), array(5, 3), array(2, 5)) == 3 * product  # forward, again, weight gradient


def conv(x, w, strides=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (strides, strides), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


@pytest.mark.parametrize(("strides", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_convolutions_and_their_gradients(strides, groups):
    x, w = array(2, 8, 8, 4), array(3, 3, 4 // groups, 6)
    forward = 2 * (2 * (8 // strides) ** 2 * 6) * 9 * 4 // groups
    assert zoo.count_flops(lambda x, w: conv(x, w, strides, groups), x, w) == forward
    both = jax.grad(lambda x, w: conv(x, w, strides, groups).sum(), (0, 1))
    assert zoo.count_flops(both, x, w) == pytest.approx(3 * forward, rel=1e-6)


def test_a_training_step_of_simple_cnn_costs_3_65_gflop():
    model = zoo.create_model("simple_cnn")
    (example,), _ = zoo.model_info("simple_cnn").example(64)
    params = abstract_variables(model, [example])["params"]
    gradient = jax.grad(lambda p, x: model.apply({"params": p}, x).sum())
    assert zoo.count_flops(gradient, params, example) == pytest.approx(3.65e9, rel=0.01)


def test_resnet18_is_torchvisions_1_81_gmac():
    assert zoo.model_info("resnet18").flops == pytest.approx(2 * 1.814e9, rel=0.001)
