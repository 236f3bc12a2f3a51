"""GELU by erf is JAX's by erfc, in value and gradient, and only in float32 on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.gelu import gelu


def plain(x):
    return jax.nn.gelu(x, approximate=False)


def test_values_and_derivatives_are_jaxs():
    x = jnp.linspace(-12, 12, 4801)
    for function in (lambda f: f, lambda f: jax.vmap(jax.grad(f)), lambda f: lambda x: jax.jvp(f, (x,), (x,))[1]):
        np.testing.assert_allclose(function(gelu)(x), function(plain)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "same"),
    [("cpu", "float32", False), ("cpu", "bfloat16", True), ("tpu", "float32", True), ("gpu", "float32", True)],
)
def test_elsewhere_it_is_jaxs(monkeypatch, platform, dtype, same):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    # Functions of their own, or what was traced for another platform is taken from the cache.
    programs = [str(jax.make_jaxpr(lambda x, f=f: f(x))(jnp.ones(3, dtype))) for f in (gelu, plain)]
    assert ("erfc" in programs[0]) == same
    assert "erfc" in programs[1]
