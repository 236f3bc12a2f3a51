"""What every architecture can do: any number of rows and steps, none and symbolic ones included, and the way to NNX."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from sources import SEQ2SEQ, TRANSFORMERS
from test_clip import SMALL as CLIP
from test_encoder import SMALL as ENCODER
from test_lstm import TINY as RECURRENT
from test_registry import TINY as IMAGES
from test_transformer import TINY as DECODERS
from test_vit import TINY as VIT

import zoo
from zoo.ops.attention import attention
from zoo.ops.attention_scores import Mask
from zoo.ops.convolution import fast_kernel_gradients
from zoo.registry import abstract_variables

OWN_FIELDS = {  # label: name and fields
    "gru_layers": ("gru", {"hidden_size": 8}),
    "rnn_layers": ("rnn", {"hidden_size": 8}),
    "last": ("lstm_classifier", {**RECURRENT["lstm_classifier"], "pooling": "last"}),
    "max": ("lstm_classifier", {**RECURRENT["lstm_classifier"], "pooling": "max"}),
    "scanned": ("nanogpt", {**DECODERS["nanogpt"], "scan_layers": True}),
    "blocked": ("gpt2", {**DECODERS["gpt2"], "attention": "blocked"}),
    "bert": ("bert_base", ENCODER),
    "tokens": ("bert_base", {**ENCODER, "output": "tokens"}),
    "minilm": ("minilm_l6", ENCODER),
    "mpnet": ("mpnet_base", ENCODER),
    "vit": ("vit_tiny16", VIT),
    "clip": ("clip_vit_base32", CLIP),
    "vit_mean": ("vit_tiny16", {**VIT, "pooling": "mean"}),
}
MODELS = {
    **{name: (name, fields) for name, (fields, _) in IMAGES.items()},
    **{name: (name, fields) for name, fields in {**RECURRENT, **DECODERS}.items()},
    **OWN_FIELDS,
    **{f"seq2seq_{kind}": model for kind, model in SEQ2SEQ.items()},
    **TRANSFORMERS,
}
LONGEST = 8  # tokens that every model of MODELS reads
SLOW = {
    "resnet8",
    "resnet50",
    "rnn_lm",
    "rnn_layers",
    "smollm2_135m",
    "llama3_1b",
    "vit_mean",
    "tokens",
    "t5_1.1",
    "marian",
}
SLOW |= {"mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0"}
SLOW |= {"seq2seq_dot", "seq2seq_general", "seq2seq_unfed_concat"}  # whose module and path another label has
LABELS = [pytest.param(label, marks=pytest.mark.slow) if label in SLOW else label for label in MODELS]


def inputs(label, rows, steps):
    """A model, its abstract inputs by name in the order of its arguments, the first of them x."""
    name, fields = MODELS[label]
    model, info = zoo.create_model(name, **fields), zoo.model_info(name)
    takes, lengths = inspect.signature(type(model).__call__).parameters, jax.ShapeDtypeStruct((rows,), jnp.int32)
    if info.input_dtype == "int32":
        x = jax.ShapeDtypeStruct((rows, steps), jnp.int32)
    else:
        sides = IMAGES[name][1] if name in IMAGES else (8, 8, 3) if name.startswith(("vit", "clip")) else (steps, 4)
        x = jax.ShapeDtypeStruct((rows, *sides), jnp.float32)
    given = {"lengths": lengths} if "lengths" in takes else {}
    if "source" in takes:
        given |= {"source": jax.ShapeDtypeStruct((rows, steps), jnp.int32), "source_lengths": lengths}
    if "texts" in takes:  # as many as there are classes, not as there are images
        given = {"texts": jax.ShapeDtypeStruct((3, 4), jnp.int32), "lengths": jax.ShapeDtypeStruct((3,), jnp.int32)}
    return model, x, given


@functools.cache
def variables_of(label):
    model, x, given = inputs(label, 2, 5)
    return abstract_variables(model, [x], given)


def every_call(model, variables, x, given):
    """The outputs of the forward pass, and of a step from a state where the model takes one."""
    outputs = [model.apply(variables, x, **given)]
    if hasattr(model, "init_state"):
        outputs.append(model.apply(variables, x, model.init_state(x.shape[0], x.shape[1]), given["lengths"]))
    if hasattr(model, "encode"):
        source = given["source"], given["source_lengths"]
        state = model.apply(variables, *source, x.shape[1], method="encode")
        outputs.append(model.apply(variables, x, state, given["lengths"]))
    return outputs


def exported(label):
    """The program of `every_call`, for any number of rows and, except for images, of steps."""
    images = zoo.model_info(MODELS[label][0]).input_shape[2:]
    sizes = export.symbolic_shape("b") if images else export.symbolic_shape("b, t", constraints=[f"t <= {LONGEST}"])
    model, x, given = inputs(label, sizes[0], sizes[-1])
    return export.export(jax.jit(functools.partial(every_call, model)))(variables_of(label), x, given)


def test_every_architecture_is_tried():
    classes = {zoo.model_info(name).module_class for name in zoo.list_models()}
    classes = {cls for cls in classes if not getattr(cls, "detects", False)}  # of which test_detectors is
    ours = {cls for cls in classes if cls.__module__.startswith("zoo.")}  # other tests register models of their own
    assert ours == {zoo.model_info(name).module_class for name, _ in MODELS.values()}


@pytest.mark.parametrize("label", LABELS)
def test_a_program_is_exported_for_any_number_of_rows_and_steps(label):
    program = exported(label)
    assert all(str(out.shape[0]) == "b" for out in program.out_avals)


@pytest.mark.parametrize("label", ["lstm_lm", "blocked", "seq2seq_gru"])
def test_an_exported_program_computes_what_the_model_does(label):
    program, rng = exported(label), np.random.default_rng(0)
    for rows, steps in ((1, 1), (3, 7)):
        model, x, given = inputs(label, rows, steps)
        variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables_of(label))
        x = rng.integers(0, 11, x.shape).astype(np.int32)
        given = {name: rng.integers(1, steps + 1, leaf.shape).astype(np.int32) for name, leaf in given.items()}
        expected = jax.jit(functools.partial(every_call, model))(variables, x, given)
        found = program.call(variables, x, given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("label", ["nanogpt", "bert", "t5"])
def test_a_symbolic_length_needs_the_models_limit(label):
    model, x, _ = inputs(label, *export.symbolic_shape("b, t"))
    given = {"source": x} if label == "t5" else {}
    with pytest.raises(zoo.ZooError, match=f"give the symbolic length t the constraint 't <= {model.max_length}'"):
        export.export(jax.jit(model.apply))(variables_of(label), x, **given)


@pytest.mark.parametrize("label", LABELS)
def test_a_batch_of_no_rows(label):
    model, x, given = inputs(label, 0, 5)
    outputs = jax.eval_shape(functools.partial(every_call, model), variables_of(label), x, given)
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(outputs))
    one = jax.eval_shape(functools.partial(every_call, model), variables_of(label), *inputs(label, 1, 5)[1:])
    assert [leaf.shape[1:] for leaf in jax.tree.leaves(outputs)] == [leaf.shape[1:] for leaf in jax.tree.leaves(one)]


@pytest.mark.parametrize("label", ["nanogpt", "lstm_lm", "seq2seq_lstm"])
def test_a_batch_of_no_rows_whose_values_are_checked(label):
    model, *given = inputs(label, 0, 5)
    zeros = functools.partial(jax.tree.map, lambda leaf: np.zeros(leaf.shape, leaf.dtype))
    outputs = every_call(model, zeros(variables_of(label)), *zeros(given))
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(outputs))


@pytest.mark.parametrize("label", ["simple_cnn", "resnet18", "nanogpt", "lstm_lm"])
@pytest.mark.parametrize("rows", [0, "b"])
def test_gradients_of_no_or_symbolic_rows(label, rows):
    model, x, _ = inputs(label, rows if rows == 0 else export.symbolic_shape("b")[0], 5)

    def gradients(params, rest, x):
        with fast_kernel_gradients():
            return jax.grad(lambda params: jnp.sum(model.apply({**rest, "params": params}, x)))(params)

    params, rest = variables_of(label)["params"], {k: v for k, v in variables_of(label).items() if k != "params"}
    if rows == 0:
        found = jax.eval_shape(gradients, params, rest, x)
    else:
        program = export.export(jax.jit(gradients))(params, rest, x)
        found = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("implementation", [None, "xla", "blocked"])
@pytest.mark.parametrize(("rows", "queries", "keys"), [(0, 300, 300), (2, 0, 300), (2, 3, 0)])
def test_attention_without_rows_queries_or_keys_is_zeros(implementation, rows, queries, keys):
    query, key = jnp.ones((rows, queries, 2, 4)), jnp.ones((rows, keys, 2, 4))
    for mask in (Mask(), Mask(True), Mask(lengths=jnp.zeros(rows, jnp.int32))):
        out = attention(query, key, key, mask, implementation=implementation)
        np.testing.assert_array_equal(out, np.zeros(query.shape))


# States, lengths and inputs of other shapes.


STATEFUL = ["lstm", "gru_layers", "lstm_lm", "awd_lstm", "nanogpt", "scanned", "post_norm", "t5"]
STATEFUL += ["seq2seq_lstm", "seq2seq_gru", "seq2seq_general", "seq2seq_dot", "seq2seq_unfed"]


def abstract_state(label, rows):
    """A function that steps from a state, and the state of `rows` rows."""
    model, _, given = inputs(label, rows, 5)
    if hasattr(model, "init_state"):
        state = jax.eval_shape(lambda: model.init_state(rows, 5))
    else:
        encode = functools.partial(model.apply, method="encode")
        source = given["source"], given["source_lengths"]
        state = jax.eval_shape(lambda variables, *source: encode(variables, *source, 5), variables_of(label), *source)
    step = functools.partial(jax.eval_shape, model.apply, variables_of(label), inputs(label, 2, 5)[1])
    return step, state


@pytest.mark.parametrize("label", STATEFUL)
def test_a_state_whose_leaf_has_another_shape_or_kind(label):
    step, state = abstract_state(label, 2)
    step(state)
    leaves, structure = jax.tree.flatten(state)
    for i, leaf in enumerate(leaves):
        integers = jnp.issubdtype(leaf.dtype, jnp.integer)
        for wrong in (
            jax.ShapeDtypeStruct((3, *leaf.shape[1:]), leaf.dtype),
            jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype),
            jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if integers else jnp.int32),
        ):
            with pytest.raises(zoo.ZooError, match=r"the state has .*, not .*; .* takes one from `") as error:
                step(jax.tree.unflatten(structure, [*leaves[:i], wrong, *leaves[i + 1 :]]))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", STATEFUL)
def test_a_state_of_another_batch_or_model(label):
    step, state = abstract_state(label, 2)
    h = jax.ShapeDtypeStruct((1, 2, 8), jnp.float32)
    fewer = {**state, next(iter(state)): {}}
    for other in ((h, h), h, [state], {}, fewer, {**state, "more": h}, abstract_state(label, 3)[1]):
        with pytest.raises(
            zoo.ZooError, match=r"the state (is a|has (no|an unexpected|.* not)) .*; .* takes one from `"
        ):
            step(other)


def test_the_number_of_layers_of_a_state():
    step, _ = abstract_state("lstm_lm", 2)
    for layers, message in ((1, "has no layers/layer1/0 float32"), (3, "has an unexpected layers/layer2/0 float32")):
        other = zoo.create_model("lstm_lm", **{**RECURRENT["lstm_lm"], "num_layers": layers}).init_state(2)
        with pytest.raises(zoo.ZooError, match=rf"the state {message} \[2, 8\]"):
            step(other)


@pytest.mark.parametrize(
    "label", ["lstm", "lstm_encoder", "lstm_lm", "lstm_classifier", "nanogpt", "bert", "post_norm"]
)
def test_lengths_that_are_no_integers_of_the_batch(label):
    model, x, given = inputs(label, 2, 5)
    source = {name: np.zeros((2, 5), np.int32) for name in given if name == "source"}

    def run(lengths):
        return jax.eval_shape(lambda *args: model.apply(*args, lengths=lengths, **source), variables_of(label), x)

    for lengths, message in (
        (np.array([2.5, 1.0]), r"integer lengths, not float64 \[2\]"),
        (np.array([np.nan, 1], np.float32), r"integer lengths, not float32 \[2\]"),
        (np.array([True, False]), r"integer lengths, not bool \[2\]"),
        (np.array([1, 2, 3]), r"one length per row, \[2\], not \[3\]"),
        (np.array(3), r"one length per row, \[2\], not \[\]"),
        (np.array([[1, 2]]), r"one length per row, \[2\], not \[1, 2\]"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            run(lengths=lengths)
    for lengths in ([2, 1], (2, 1)):
        with pytest.raises(
            zoo.ZooError, match=f"takes lengths as an array of integers, not as a {type(lengths).__name__}"
        ):
            run(lengths)
    run(np.array([2, 0], np.uint8))


@pytest.mark.parametrize(("label", "name"), [("bert", "types"), ("nanogpt", "segments")])
def test_numbers_beside_tokens_have_their_shape(label, name):
    model, x, _ = inputs(label, 2, 5)

    def run(array):
        return jax.eval_shape(lambda *args: model.apply(*args, **{name: array}), variables_of(label), x)

    for wrong in (np.zeros((2, 1), int), np.zeros(5, int), np.zeros((2, 5)), [[0] * 5] * 2):
        with pytest.raises(zoo.ZooError, match=rf"takes {name} that are integers \[2, 5\], one for each token, not "):
            run(wrong)
    run(np.ones((2, 5), np.int64))
    if name == "types":
        with pytest.raises(zoo.ZooError, match="Encoder: 2 in types is outside 0 to 1"):
            run(np.full((2, 5), 2))


@pytest.mark.parametrize(
    "label", ["lstm", "lstm_forecaster", "lstm_encoder", "lstm_lm", "nanogpt", "bert", "simple_cnn", "vit"]
)
def test_an_input_without_a_batch_axis_or_that_is_a_list(label):
    model, x, _ = inputs(label, 2, 5)
    for wrong in (jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.ShapeDtypeStruct((1, *x.shape), x.dtype)):
        with pytest.raises(zoo.ZooError, match=r"takes .*\[batch, .*, not "):
            jax.eval_shape(model.apply, variables_of(label), wrong)
    with pytest.raises(zoo.ZooError, match=r"takes .*\[batch, .*, not a list"):
        model.apply({}, np.zeros(x.shape, x.dtype).tolist())


# NNX.


@pytest.mark.parametrize("label", LABELS)
def test_the_bridge_carries_the_model_into_nnx(label):
    """With its state and its features; nothing is computed."""
    model, x, given = inputs(label, 2, 5)

    def run(x, given):
        module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(x, **given)
        outputs = [module(x, **given), module(x, **given, mutable=["features"]), module(x, **given)]
        if hasattr(model, "init_state"):
            outputs.append(module(x, module.init_state(2, 5), given["lengths"]))
        if hasattr(model, "encode"):
            state = module.encode(given["source"], given["source_lengths"], 5)
            outputs.append(module(x, state, given["lengths"]))
        return outputs

    plain, featured, again, *stepped = jax.eval_shape(run, x, given)
    assert plain == featured == again
    expected = jax.eval_shape(functools.partial(every_call, model), variables_of(label), x, given)
    assert [plain, *stepped] == expected


@pytest.mark.parametrize("label", ["lstm_lm", pytest.param("nanogpt", marks=pytest.mark.slow)])
def test_a_model_in_nnx_computes_the_same_from_its_state(label):
    model, x, _ = inputs(label, 2, 5)
    tokens = np.random.default_rng(0).integers(0, 11, x.shape).astype(np.int32)
    module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(tokens)
    whole, state = module(tokens), module.init_state(2, 5)
    first, state = module(tokens[:, :2], state)
    second, state = module(tokens[:, 2:], state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-5)
    assert state["position"].tolist() == [5, 5]
