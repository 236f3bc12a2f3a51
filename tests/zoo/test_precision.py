"""With JAX_ENABLE_X64: a model in float64 computes nothing in less, and one in float32 nothing in more."""

import functools

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.flops import _inner_jaxprs
from zoo.ops import recurrence
from zoo.ops.attention import Mask, attention, attention_reference
from zoo.ops.convolution import conv_general_dilated, fast_kernel_gradients

NOT_CNNS = [name for name in architectures.ONE_OF_EACH if zoo.model_info(name).family != "cnn"]
DEEP = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0", "densenet121"]
SOURCES = [name for name in NOT_CNNS if zoo.model_info(name).more_inputs]
CLASSES = {zoo.model_info(name).module_class for name in zoo.list_models()}


def dtypes_in(jaxpr, found):
    """The floating-point dtypes of all arrays that a program computes; scalars are constants."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if variable.aval.shape and jnp.issubdtype(variable.aval.dtype, jnp.floating):
                found.setdefault(variable.aval.dtype.name, []).append(str(equation)[:300])
        for inner in _inner_jaxprs(equation.params):
            dtypes_in(inner, found)
    return found


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_every_architecture_is_here():
    assert {
        zoo.model_info(name).module_class for name in (*architectures.ONE_OF_EACH, *architectures.DETECTORS)
    } == CLASSES


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(name, "float64", marks=[pytest.mark.slow] * (name in DEEP)) for name in architectures.ONE_OF_EACH]
    + [
        (name, "float32")
        for name in architectures.ONE_OF_EACH
        if name == "resnet8" or zoo.model_info(name).family != "cnn"
    ],
)
def test_everything_is_computed_in_the_models_dtype(name, dtype):
    """Outputs and gradients, of every array in the program."""
    model, (x, keywords) = architectures.new(name, dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, **keywords)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params, rest, x):
        with fast_kernel_gradients():
            out = model.apply({"params": params, **rest}, x, **keywords)
        return jnp.sum(jnp.sin(out)), out

    jaxpr, (_, out) = jax.make_jaxpr(jax.grad(loss, has_aux=True), return_shape=True)(variables["params"], rest, x)
    found = dtypes_in(jaxpr.jaxpr, {})
    if name in ("t5_small", "mpnet_base") and dtype == "float64":
        found.pop("float32")  # buckets of distances are integers, computed as in T5
    assert out.dtype == dtype
    assert set(found) == {dtype}, {other: lines[:3] for other, lines in found.items() if other != dtype}


@pytest.mark.parametrize("name", ["lstm_lm", "awd_lstm", "nanogpt", "llama3_1b"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_state_keeps_its_dtypes(name, dtype):
    """Lengths of 64 bits, NumPy's default, included: a loop carries the state."""
    model, (tokens, _) = architectures.new(name, dtype)
    state = model.init_state(2, 8)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    new = jax.eval_shape(lambda v, s, n: model.apply(v, tokens, s, n)[1], variables, state, np.array([2, 4]))
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize(
    "name", ["seq2seq_lstm", "seq2seq_lstm_luong", "seq2seq_gru_attention", "transformer_base", "t5_small"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_state_with_a_source_keeps_its_dtypes(name, dtype):
    model, (tokens, keywords) = architectures.new(name, dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    lengths = np.array([2, 4])

    def run(variables, lengths):
        state = model.apply(variables, keywords["source"], lengths, 8, method="encode")
        return state, model.apply(variables, tokens, state, lengths)[1]

    old, new = jax.eval_shape(run, variables, lengths)
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, old)


@pytest.mark.parametrize("param_dtype", ["float32", "float64"])
def test_batch_statistics_keep_their_dtype(param_dtype):
    model, (x, _) = architectures.new("resnet8", "float64", param_dtype=param_dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    stats = jax.eval_shape(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"])[1], variables)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((stats, variables["batch_stats"]))} == {param_dtype}


def assert_same(ours, theirs):
    """To 1e-12 of the largest value, rounding of float64."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype == np.float64
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-12 * max(np.abs(b).max(), 1)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_recurrences_are_the_textbooks(cell):
    rng, gates = np.random.default_rng(0), recurrence.GATES[cell] * 4
    inputs, kernel, bias = (jnp.asarray(rng.normal(size=shape)) for shape in [(5, 3, gates), (4, gates), (gates,)])
    state = tuple(jnp.asarray(rng.normal(size=(3, 4))) for _ in range(1 + (cell == "lstm")))
    lengths = jnp.array([5, 0, 3])

    def run(function, *args):
        out = function(cell, *args[:2], args[3], lengths, bias=args[2])
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out[:2])), out[:2]

    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(run, f), argnums=(0, 1, 2, 3), has_aux=True))
        for f in (recurrence.recur, recurrence.recur_reference)
    )
    assert_same(ours(inputs, kernel, bias, state), theirs(inputs, kernel, bias, state))


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_attention_is_the_references(implementation):
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(2, 70, heads, 4))) for heads in (4, 2, 2)]
    mask = Mask(causal=True, lengths=jnp.array([66, 0]))

    def run(function, *inputs):
        out = function(*inputs, mask)
        return jnp.sum(jnp.sin(out)), out

    fast = functools.partial(attention, implementation=implementation)
    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(run, f), argnums=(0, 1, 2), has_aux=True))(*inputs)
        for f in (fast, attention_reference)
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize(("channels", "strides"), [(3, (1, 1)), (64, (1, 1)), (5, (2, 2))])
def test_convolutions_are_xlas(channels, strides):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape)) for shape in [(2, 8, 8, channels), (3, 3, channels, 64)])

    def run(x, kernel):
        out = conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.sin(out)), out

    plain = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(x, kernel)
    with fast_kernel_gradients():
        fast = jax.jit(jax.value_and_grad(lambda *a: run(*a), argnums=(0, 1), has_aux=True))(x, kernel)
    assert_same(fast, plain)
