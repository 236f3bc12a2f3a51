"""A dense layer's product by rows is the plain one, forward and backward, and only on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import zoo
from zoo.ops.dense import dot_general

SHAPES = {"vector": (5,), "rows": (7, 5), "sequence": (3, 4, 5), "maps": (2, 3, 4, 5), "no tokens": (3, 0, 5)}


def layers(shape, dtype=jnp.float32, **fields):
    """The loss of a layer of each product, with gradients by parameters and x; and the arguments."""
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    weights = jnp.sin(jnp.arange(6.0))
    plain, fast = nn.Dense(6, dtype=dtype), nn.Dense(6, dtype=dtype, dot_general=dot_general)
    variables = plain.init(jax.random.key(1), x)

    def loss_of(layer):
        return lambda variables, x: jnp.sum(jnp.square(layer.apply(variables, x) * weights))

    return loss_of(plain), loss_of(fast), (variables, x)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_plain_product(shape):
    plain, fast, args = layers(shape)
    expected, actual = (jax.value_and_grad(loss, argnums=(0, 1))(*args) for loss in (plain, fast))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual, expected)


def test_forward_mode_and_vmap_hold():
    plain, fast, (variables, x) = layers((3, 4, 5))
    for transform in (
        lambda loss: jax.jvp(loss, (variables, x), (variables, x)),
        lambda loss: jax.vmap(jax.grad(loss), (None, 0))(variables, jnp.stack([x, 2 * x])),
    ):
        actual, expected = transform(fast), transform(plain)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def gradient_program(loss, args, platform):
    return jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_other_platforms_keep_their_program(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    plain, fast, args = layers((3, 4, 5))
    target = "cuda" if platform == "gpu" else platform
    same = gradient_program(fast, args, target) == gradient_program(plain, args, target)
    assert same == (platform != "cpu")


def test_a_gpt_is_differentiated_by_rows():
    """Products in the step of a GPT are of rows, or batched ones of attention."""
    model = zoo.create_model("nanogpt", vocab_size=5, hidden_size=8, num_layers=1, num_heads=2, max_length=4)
    tokens = jnp.zeros((3, 4), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    program = jax.make_jaxpr(jax.grad(lambda variables: model.apply(variables, tokens).sum()))(variables)
    dimensions = [
        equation.params["dimension_numbers"] for equation in program.eqns if equation.primitive is lax.dot_general_p
    ]
    assert dimensions
    assert all(len(contracted[0]) == 1 for contracted, _ in dimensions)
