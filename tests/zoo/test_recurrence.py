"""The fast recurrence against the textbook's scan: values, states and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import recurrence
from zoo.ops.recurrence import GATES, project_tokens, recur, recur_reference

T, B, F, H = 7, 3, 5, 6
LENGTHS = np.array([7, 0, 4], np.int32)
CELLS = sorted(GATES)


def arguments(cell, dtype=jnp.float32, scale=1.0):
    """Inputs, kernel, bias (for the RNN none) and a state that is not zero."""
    keys = jax.random.split(jax.random.key(0), 5)
    gates = GATES[cell] * H
    inputs = scale * jax.random.normal(keys[0], (T, B, gates))
    kernel = jax.random.normal(keys[1], (H, gates)) / H**0.5
    bias = jax.random.normal(keys[2], (gates,)) if cell != "rnn" else None
    state = (jax.random.normal(keys[3], (B, H)).astype(dtype), jax.random.normal(keys[4], (B, H)))
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    return cast(inputs), cast(kernel), cast(bias), state[: 2 if cell == "lstm" else 1]


def weighted(function, cell, lengths, reverse):
    """A scalar that depends on every output and every final state, each with a weight of its own."""

    def loss(inputs, kernel, bias, state):
        out = function(cell, inputs, kernel, state, lengths, bias=bias, reverse=reverse)
        leaves = [leaf.astype(jnp.float32) for leaf in (out[0], *out[1])]
        return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)

    return loss


def assert_close(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_values_states_and_gradients_are_the_textbooks(cell, reverse, lengths):
    inputs, kernel, bias, state = arguments(cell)
    options = {"bias": bias, "reverse": reverse}
    fast = jax.jit(functools.partial(recur, cell, **options))(inputs, kernel, state, lengths)
    plain = recur_reference(cell, inputs, kernel, state, lengths, **options)[:2]
    assert_close(fast, plain, 1e-5)
    losses = [weighted(f, cell, lengths, reverse) for f in (recur, recur_reference)]
    by = (0, 1, 3) if bias is None else (0, 1, 2, 3)
    actual, expected = (jax.jit(jax.grad(loss, argnums=by))(inputs, kernel, bias, state) for loss in losses)
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_in_bfloat16_within_a_few_of_its_roundings(cell):
    """Both round h to 8 bits every step; the fast one rounds what it keeps for the gradient as well."""
    inputs, kernel, bias, state = arguments(cell, jnp.bfloat16)
    fast = recur(cell, inputs, kernel, state, LENGTHS, bias=bias)
    plain = recur_reference(cell, inputs, kernel, state, LENGTHS, bias=bias)[:2]
    assert_close(fast, plain, 2**-7)
    losses = [weighted(f, cell, LENGTHS, False) for f in (recur, recur_reference)]
    actual, expected = (jax.grad(loss, argnums=(0, 1, 3))(inputs, kernel, bias, state) for loss in losses)
    assert_close(actual, expected, 2**-5)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_another_length_do_not_depend_on_the_padding(cell):
    inputs, kernel, bias, state = arguments(cell)
    for reverse in (False, True):
        outputs, final = recur(cell, inputs, kernel, state, LENGTHS, bias=bias, reverse=reverse)
        for row, length in enumerate(LENGTHS):
            own = tuple(leaf[row : row + 1] for leaf in state)
            alone, end = own, own
            if length:
                piece = inputs[:length, row : row + 1]
                alone, end = recur(cell, piece, kernel, own, bias=bias, reverse=reverse)
                np.testing.assert_allclose(outputs[:length, row], alone[:, 0], rtol=1e-5, atol=1e-6)
            assert not outputs[length:, row].any()
            for leaf, expected in zip(final, end, strict=True):
                np.testing.assert_allclose(leaf[row], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("function", [recur, recur_reference])
def test_nan_in_padding_changes_nothing(cell, function):
    inputs, kernel, bias, state = arguments(cell)
    padding = (jnp.arange(T)[:, None] >= LENGTHS)[..., None]
    for reverse in (False, True):
        loss = jax.jit(jax.value_and_grad(weighted(function, cell, LENGTHS, reverse), argnums=(0, 1, 3)))
        clean, *dirty = (loss(jnp.where(padding, x, inputs), kernel, bias, state) for x in (0, jnp.nan, jnp.inf))
        for results in dirty:
            jax.tree.map(np.testing.assert_array_equal, results, clean)


@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_leave_the_state_as_it_is(cell):
    inputs, kernel, bias, state = arguments(cell)
    for lengths in (None, np.zeros(B, np.int32)):
        outputs, final = recur(cell, inputs[:0], kernel, state, lengths, bias=bias)
        assert outputs.shape == (0, B, H)
        assert_close(final, state, 0)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_of_either_form_by_hand(reset_after):
    """ONNX's equations of GRU, `linear_before_reset` 1 and 0, row by row and step by step."""
    inputs, kernel, bias, (h,) = (jax.tree.map(np.asarray, leaf) for leaf in arguments("gru"))
    outputs, (final,) = recur("gru", inputs, kernel, (h,), LENGTHS, bias=bias, reset_after=reset_after)
    for row, length in enumerate(LENGTHS):
        state = h[row].astype(np.float64)
        for t in range(length):
            x = inputs[t, row]
            gates = 1 / (1 + np.exp(-(x + state @ kernel + bias)[: 2 * H]))
            r, z = gates[:H], gates[H:]
            by_state, new_bias = kernel[:, 2 * H :], bias[2 * H :]
            product = r * (state @ by_state + new_bias) if reset_after else (r * state) @ by_state + new_bias
            state = (1 - z) * np.tanh(x[2 * H :] + product) + z * state
            np.testing.assert_allclose(outputs[t, row], state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(final[row], state, rtol=1e-5, atol=1e-6)


def test_saturated_gates_have_finite_gradients():
    inputs, kernel, _, state = arguments("lstm", scale=200.0)
    gradients = jax.grad(weighted(recur, "lstm", None, False), argnums=(0, 1, 3))(inputs, kernel, None, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("rows", [9, recurrence.ONE_HOT_ROWS + 1])
def test_a_projected_table_is_the_projected_sequence(rows):
    keys = jax.random.split(jax.random.key(1), 4)
    table, kernel = jax.random.normal(keys[0], (rows, F)), jax.random.normal(keys[1], (F, 4))
    tokens = jax.random.randint(keys[3], (T, B), 0, rows)

    def loss(function, *args):
        return jnp.sum(jnp.sin(function(*args)))

    def plain(table, tokens, kernel):
        return table[tokens] @ kernel

    for size in (tokens, jnp.tile(tokens, (40, 1))):  # fewer and more tokens than the table has rows
        args = table, size, kernel
        np.testing.assert_allclose(project_tokens(*args), plain(*args), rtol=1e-5, atol=1e-5)
        actual = jax.grad(functools.partial(loss, project_tokens), argnums=(0, 2))(*args)
        expected = jax.grad(functools.partial(loss, plain), argnums=(0, 2))(*args)
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tables_gradient_is_the_same_by_scatter_and_by_product(dtype):
    keys = jax.random.split(jax.random.key(2))
    tokens, rows = jax.random.randint(keys[0], (50,), 0, 9), jax.random.normal(keys[1], (50, F)).astype(dtype)
    scattered, product = (f(9, tokens, rows) for f in (recurrence.scatter_gradient, recurrence.one_hot_gradient))
    assert_close(scattered, product, 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_backward_scan_multiplies_once_a_step_and_the_weights_once(cell):
    """Of the three products, the one by the kernel lies outside the loop: twice its FLOPs are those of a step."""
    inputs, kernel, bias, state = arguments(cell)
    jaxpr = jax.make_jaxpr(jax.grad(weighted(recur, cell, None, False), argnums=1))(inputs, kernel, bias, state)
    scans = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "scan"]
    products = [str(scan.params["jaxpr"]).count("dot_general") for scan in scans]
    assert products == [1, 1]
