"""Every registered model by name: its parameters, shapes and dtypes; and what a wrong name gets."""

import ast
import functools
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.registry import abstract_variables

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = {  # torchvision's documentation; He et al. 2016, table 6 (0.27M, 0.85M); LeCun et al. 1998 in today's form
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "lenet5": 61_706,
}
TINY = {  # one small model an architecture, run for real
    "simple_cnn": ({"hidden_size": 16}, (16, 16, 3)),
    "lenet5": ({}, (20, 24, 1)),
    "resnet8": ({"width": 4}, (16, 16, 3)),
    "resnet18": ({"width": 4}, (33, 40, 3)),
    "resnet50": ({"width": 4, "stage_sizes": (1, 1, 1, 1)}, (32, 32, 3)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


def test_parameter_counts_by_arithmetic():
    conv, dense = 9 * 3 * 32 + 32 + 9 * 32 * 64 + 64, (8 * 8 * 64 + 1) * 1024 + 1025 * 10
    assert zoo.model_info("simple_cnn").parameters == conv + dense


@pytest.mark.parametrize("name", zoo.list_models())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_dtypes_and_gradients(name, dtype):
    info = zoo.model_info(name)
    model, example = zoo.create_model(name, dtype=dtype), info.example(2)
    variables = abstract_variables(model, example)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, example)
    assert (logits.shape, logits.dtype) == ((2, model.num_classes), jnp.dtype(dtype))

    def loss(params):
        rest = {key: value for key, value in variables.items() if key != "params"}
        rngs = {"dropout": jax.random.key(0)}
        out, _ = model.apply({"params": params, **rest}, example_array, train=True, rngs=rngs, mutable=list(rest))
        return out.sum()

    example_array = jnp.zeros(example.shape, example.dtype)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), example_array))

    def gradients():
        nonlocal variables
        variables = model.init(jax.random.key(0), example_array)
        return jax.grad(loss)(variables["params"])

    found = jax.eval_shape(gradients)
    expected = abstract_variables(model, example)["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_runs(name):
    fields, shape = TINY[name]
    model = zoo.create_model(name, num_classes=3, **fields)
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        rest = {key: value for key, value in variables.items() if key != "params"}
        out, _ = model.apply({"params": params, **rest}, images, train=True, mutable=list(rest))
        return jnp.square(out).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all()
    assert np.mean(np.array(norms) > 0) > 0.9  # some biases before a batch norm have none
    plain, compiled = model.apply(variables, images), jax.jit(model.apply)(variables, images)
    assert plain.shape == (2, 3)
    np.testing.assert_allclose(plain, compiled, rtol=1e-4, atol=1e-5)  # fused or not, the sums differ in order


def test_every_architecture_has_a_tiny_model():
    classes = {zoo.model_info(name).module_class for name in zoo.list_models()}
    assert classes == {zoo.model_info(name).module_class for name in TINY}


@pytest.mark.parametrize("name", TINY)
def test_features_come_only_on_request_and_by_the_documented_names(name):
    fields, shape = TINY[name]
    model = zoo.create_model(name, **fields)
    images = np.ones((1, *shape), np.float32)
    variables = model.init(jax.random.key(0), images)
    assert "features" not in variables
    logits, changed = model.apply(variables, images, mutable=["features"])
    np.testing.assert_array_equal(logits, model.apply(variables, images))
    assert set(changed["features"]) == set(zoo.model_info(name).features)
    documented = type(model).__doc__.split("Features: ")[1]
    assert all(feature.rstrip("34") in documented or feature in documented for feature in changed["features"])


def test_resnet_stages_have_strides_4_to_32():
    features = zoo.model_info("resnet50").features
    assert [features[f"stage{i}"] for i in range(1, 5)] == [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


def test_option_a_shortcuts_have_no_parameters():
    variables = abstract_variables(zoo.create_model("resnet20"), zoo.model_info("resnet20").example())
    assert not any("downsample" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables))


def test_globs_and_families():
    assert zoo.list_models("resnet*") == ["resnet18", "resnet20", "resnet50", "resnet56", "resnet8"]
    assert zoo.list_models("resnet18", family="cnn") == ["resnet18"]
    assert zoo.list_models("no*") == []
    with pytest.raises(zoo.ZooError, match="unknown family 'cn'; did you mean cnn"):
        zoo.list_models(family="cn")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet_18", {}, "unknown model 'resnet_18'; did you mean resnet18"),
        ("xyz", {}, "unknown model 'xyz'; there are"),
        ("resnet18", {"num_clases": 10}, "no field 'num_clases'; did you mean num_classes"),
        ("resnet18", {"num_classes": "ten"}, "num_classes must be int, not 'ten'"),
        ("resnet18", {"num_classes": True}, "num_classes must be int, not True"),
        ("resnet18", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("resnet18", {"stage_sizes": (2, 0)}, "stage_sizes must be at least 1"),
        ("resnet18", {"stage_sizes": 2}, "stage_sizes must be tuple"),
        ("resnet18", {"block": "wide"}, "block must be one of 'basic', 'bottleneck', not 'wide'"),
        ("resnet18", {"dtype": "float31"}, "dtype must be a dtype such as float32"),
        ("simple_cnn", {"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\), not 1.0"),
        ("simple_cnn", {"dropout_rate": float("nan")}, "dropout_rate must be float, not nan"),
    ],
)
def test_wrong_names_and_values_say_what_would_be_right(name, fields, message):
    with pytest.raises(zoo.ZooError, match=message) as error:
        zoo.create_model(name, **fields)
    assert "\n" not in str(error.value)


def test_lists_become_tuples_and_strings_dtypes():
    model = zoo.create_model("resnet18", stage_sizes=[1, 1], dtype="bfloat16")
    assert (model.stage_sizes, model.dtype) == ((1, 1), jnp.dtype("bfloat16"))


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 2, 2, 3)])
def test_images_of_a_wrong_shape_are_refused(shape):
    model = zoo.create_model("simple_cnn")
    with pytest.raises(zoo.ZooError, match="SimpleCNN takes images"):
        model.init(jax.random.key(0), np.zeros(shape, np.float32))


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr("zoo.registry._MODELS", dict(zoo.registry._MODELS))

    @zoo.register("my_linear", family="cnn", input_shape=(4, 4, 1))
    class Linear(nn.Module):
        num_classes: int = 2

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

    assert zoo.create_model("my_linear", num_classes=5).num_classes == 5
    assert zoo.model_info("my_linear").parameters == 17 * 2
    zoo.register("my_linear5", family="cnn", input_shape=(4, 4, 1))(functools.partial(Linear, num_classes=5))
    assert zoo.model_info("my_linear5").fields == {"num_classes": 5}
    with pytest.raises(zoo.ZooError, match="'resnet18' is taken by ResNet"):
        zoo.register("resnet18", family="cnn", input_shape=(4, 4, 1))(Linear)


def test_import_zoo_loads_nothing_heavy():
    heavy = ("optax", "orbax", "tensorstore", "PIL", "tokenizers", "torch", "tensorflow", "tyro", "matplotlib")
    code = f"import sys, zoo; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_zoo_never_imports_train():
    for path in (ROOT / "zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "train" for name in names), path


def test_batch_norm_statistics_stay_float32_in_bfloat16():
    model = zoo.create_model("resnet8", width=4, dtype="bfloat16")
    images = np.random.default_rng(0).normal(5, 1, size=(8, 16, 16, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    _, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}
