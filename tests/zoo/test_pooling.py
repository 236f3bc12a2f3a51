"""Pooling by slices is pooling by windows, in value and gradient, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import ZooError
from zoo.ops.pooling import avg_pool, max_pool, max_pool_slices, max_pool_windows

CASES = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1)]


@pytest.mark.parametrize(("window", "strides", "padding"), CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_slices_equal_windows(window, strides, padding, ties):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, (2, 9, 10, 3)) if ties else rng.normal(size=(2, 9, 10, 3))
    x = jnp.asarray(x, jnp.float32)
    results = []
    pads = ((padding, padding), (padding, padding))
    for pool, pad in ((max_pool_slices, pads), (max_pool_windows, pads), (max_pool, padding)):
        y, pullback = jax.vjp(lambda x, pool=pool, pad=pad: pool(x, window, strides, pad), x)
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


def by_hand(x, window, strides, size, start, pool):
    """`pool` of each window's pixels of the image, of which the first window begins `start` before it."""
    out = np.zeros((len(x), *size, x.shape[3]), np.float32)
    for i, j in np.ndindex(*size):
        rows, columns = (
            (max(n * strides - s, 0), n * strides - s + window) for n, s in zip((i, j), start, strict=True)
        )
        out[:, i, j] = pool(x[:, slice(*rows), slice(*columns)].reshape(len(x), -1, x.shape[3]), 1)
    return out


@pytest.mark.parametrize(("window", "strides"), [(2, 2), (3, 2), (3, 1), (2, 3), (5, 4)])
def test_same_padding_is_kerass(window, strides):
    """Half of what is missing before, the rest after; a mean is over the image alone."""
    x = np.random.default_rng(0).normal(size=(2, 9, 10, 3)).astype(np.float32)
    size = [-(-side // strides) for side in x.shape[1:3]]
    start = [max((n - 1) * strides + window - side, 0) // 2 for n, side in zip(size, x.shape[1:3], strict=True)]
    for ours, pool in ((max_pool, np.max), (avg_pool, np.mean)):
        expected = by_hand(x, window, strides, size, start, pool)
        np.testing.assert_allclose(ours(x, window, strides, "SAME"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(("window", "strides", "padding"), [(3, 2, 1), (3, 2, 0), (2, 3, 1), (5, 4, 2)])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_is_torchs(window, strides, padding, ceil_mode):
    torch = pytest.importorskip("torch", reason="parity compares with torch")
    rng = np.random.default_rng(0)
    for side in (7, 8):
        x = rng.normal(size=(2, side, 9, 3)).astype(np.float32)
        options = {"kernel_size": window, "stride": strides, "padding": padding, "ceil_mode": ceil_mode}
        cases = [(max_pool, torch.nn.MaxPool2d(**options), {})]
        for counted in (False, True):
            peer = torch.nn.AvgPool2d(**options, count_include_pad=counted)
            cases.append((avg_pool, peer, {"count_padding": counted}))
        for ours, peer, more in cases:
            tensor = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
            theirs = peer(tensor)
            weights = rng.normal(size=theirs.shape).astype(np.float32)
            (by_x,) = torch.autograd.grad(theirs, tensor, torch.from_numpy(weights))
            run = jax.jit(lambda x, o=ours, m=more: o(x, window, strides, padding, ceil_mode, **m))
            y, back = jax.vjp(run, x)
            np.testing.assert_allclose(y, theirs.detach().permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
            by_ours = back(jnp.asarray(weights.transpose(0, 2, 3, 1)))[0]
            np.testing.assert_allclose(by_ours, by_x.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_windows_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 4, 2, 1))
    with pytest.raises(ZooError, match="a pooling window of 3 does not fit into 2 pixels padded by 0"):
        max_pool(x, 3, 2)
    for padding in (2, -1, "VALID", 1.0):
        with pytest.raises(ZooError, match="a padding of 0 to 1, half of the window, or 'SAME', not "):
            avg_pool(x, 2, 2, padding)
