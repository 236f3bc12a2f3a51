"""Pooling by slices is pooling by windows, in value and gradient, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.pooling import max_pool, max_pool_slices, max_pool_windows

CASES = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1)]


@pytest.mark.parametrize(("window", "strides", "padding"), CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_slices_equal_windows(window, strides, padding, ties):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, (2, 9, 10, 3)) if ties else rng.normal(size=(2, 9, 10, 3))
    x = jnp.asarray(x, jnp.float32)
    results = []
    for pool in (max_pool_slices, max_pool_windows, max_pool):
        y, pullback = jax.vjp(lambda x, pool=pool: pool(x, window, strides, padding), x)
        weights = jnp.asarray(rng.permutation(y.size).reshape(y.shape), jnp.float32) if not results else weights  # noqa: F821
        results.append((y, pullback(weights)[0]))
    for y, gradient in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])  # small integers: sums are exact


def test_forward_mode_works():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    _, tangent = jax.jvp(lambda x: max_pool(x, 2, 2), (x,), (x,))
    np.testing.assert_array_equal(tangent[0, ..., 0], [[5, 7], [13, 15]])


def test_slices_are_of_gradients_on_a_cpu_alone():
    def program(function, platform):
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        return jax.jit(function).trace(x).lower(lowering_platforms=(platform,)).as_text()

    def pool(x):
        return max_pool(x, 2, 2)

    for function, platform, slices in [
        (pool, "cpu", False),
        (pool, "tpu", False),
        (jax.grad(lambda x: pool(x).sum()), "cpu", True),
        (jax.grad(lambda x: pool(x).sum()), "tpu", False),
    ]:
        text = program(function, platform)
        assert ("stablehlo.slice" in text) == slices
        assert ("reduce_window" in text or "select_and_scatter" in text) != slices
