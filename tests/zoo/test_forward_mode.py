"""Inside `zoo.forward_mode()` every architecture has a Jacobian-vector product and a Hessian."""

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.ops.attention import Mask, attention
from zoo.ops.convolution import fast_kernel_gradients


def scalar(model, variables, x, keywords):
    """A function of the parameters, and a direction in their space."""
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        out = model.apply({"params": params, **rest}, x, **keywords)
        return jnp.sum(jnp.sin(out) * jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    rng = np.random.default_rng(2)
    return loss, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), variables["params"])


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


QUICK = ["simple_cnn", "gru", "lstm_lm", "nanogpt", "seq2seq_gru_attention"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in architectures.ONE_OF_EACH]
)
@jax.enable_x64(True)
def test_products_with_the_jacobian_and_the_hessian(name):
    """In float64: what reverse mode, once and twice, gives outside of the context, to 1e-9 of the largest value."""
    model, (x, keywords) = architectures.new(name, "float64")
    variables = architectures.variables_of(model, x, **keywords)
    loss, direction = scalar(model, variables, x, keywords)

    @jax.jit
    def forward(params):
        with zoo.forward_mode(), fast_kernel_gradients():
            return jax.jvp(jax.value_and_grad(loss), (params,), (direction,))

    @jax.jit
    def reverse(params):
        value, gradient = jax.value_and_grad(loss)(params)
        along, by_hessian = jax.value_and_grad(lambda params: dot(jax.grad(loss)(params), direction))(params)
        return (value, gradient), (along, by_hessian)

    for ours, theirs in zip(*(jax.tree.leaves(f(variables["params"])) for f in (forward, reverse)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-9 * max(np.abs(theirs).max(), 1)


@pytest.mark.parametrize("name", ["lstm", pytest.param("nanogpt", marks=pytest.mark.slow)])
def test_jax_hessian_jacfwd_and_linearize(name):
    """The whole Hessian by one parameter is symmetric, and the same in forward mode twice."""
    model, (x, keywords) = architectures.new(name)
    variables = architectures.variables_of(model, x, **keywords)
    leaves, tree = jax.tree.flatten(variables["params"])
    small = min(range(len(leaves)), key=lambda i: leaves[i].size)

    def loss(leaf):
        params = jax.tree.unflatten(tree, [*leaves[:small], leaf, *leaves[small + 1 :]])
        return jnp.sum(jnp.sin(model.apply({"params": params}, x, **keywords)))

    with zoo.forward_mode():
        hessian = jax.jit(jax.hessian(loss))(leaves[small])
        twice = jax.jit(jax.jacfwd(jax.jacfwd(loss)))(leaves[small])
        _, tangent = jax.linearize(loss, leaves[small])
    scale = float(jnp.abs(hessian).max())
    assert scale > 0
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-5 * scale)
    np.testing.assert_allclose(hessian, twice, atol=1e-5 * scale)
    gradient = jax.grad(loss)(leaves[small])
    np.testing.assert_allclose(tangent(jnp.ones_like(gradient)), gradient.sum(), rtol=1e-4, atol=1e-5)


def test_outside_of_the_context_jax_refuses():
    model, (x, _) = architectures.new("lstm")
    variables = architectures.variables_of(model, x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda v: model.apply(v, x), (variables,), (variables,))


def test_attention_in_blocks_has_a_tangent():
    query = jnp.asarray(np.random.default_rng(0).normal(size=(1, 300, 1, 4)), jnp.float32)

    def run(query):
        return attention(query, query, query, Mask(causal=True), implementation="blocked").sum()

    with zoo.forward_mode():
        value, tangent = jax.jvp(run, (query,), (jnp.ones_like(query),))
    expected, gradient = jax.value_and_grad(run)(query)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(tangent, gradient.sum(), rtol=1e-4)
