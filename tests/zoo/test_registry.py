"""Every CNN by name: its parameters, shapes and dtypes; and what a wrong name gets."""

import ast
import functools
import math
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.cnn.airbench import whitening_kernel
from zoo.cnn.layers import adaptive_mean, drop_path
from zoo.features import sow
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs
from zoo.registry import abstract_variables, example_of

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = {  # torchvision's documentation
    "alexnet": 61_100_840,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "resnext101_32x8d": 88_791_336,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet50_2": 68_883_240,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "efficientnet_lite0": 4_652_008,  # TensorFlow's checkpoint
    # timm's models
    "convnextv2_atto": 3_708_400,
    "convnextv2_base": 88_717_800,
    "convnextv2_femto": 5_233_240,
    "convnextv2_nano": 15_623_800,
    "convnextv2_pico": 9_066_280,
    "convnextv2_tiny": 28_635_496,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "resnet101d": 44_568_392,
    "resnet50d": 25_576_264,
    "unet": 31_030_658,  # of the authors' layers: 64 to 1024 channels, biases, one input channel, two classes
    "lenet5": 61_706,  # LeCun et al. 1998 in today's form
}
ROUNDED = {  # He et al. 2016, table 6; Zagoruyko and Komodakis 2016, table 4: in millions
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "wide_resnet28_10": 36.5,
}
TINY = {  # one small model an architecture, run for real
    "simple_cnn": ({"hidden_size": 16}, (16, 16, 3)),
    "lenet5": ({}, (20, 24, 1)),
    "resnet8": ({"width": 4}, (16, 16, 3)),
    "resnet18": ({"width": 4}, (33, 40, 3)),
    "resnet50": ({"width": 4, "stage_sizes": (1, 1, 1, 1)}, (32, 32, 3)),
    "wide_resnet28_10": ({"width": 4, "stage_sizes": (1, 1, 1)}, (16, 16, 3)),
    "airbench": ({"widths": (4, 6, 8)}, (16, 20, 3)),
    "alexnet": ({"hidden_size": 8}, (63, 70, 3)),
    "vgg11_bn": ({"hidden_size": 8}, (32, 32, 3)),
    "densenet121": ({"stage_sizes": (1, 2, 1, 1), "growth_width": 4, "width": 8}, (33, 40, 3)),
    "mobilenet_v2": ({"multiplier": 0.1}, (40, 40, 3)),
    "mobilenet_v3_small": ({"hidden_size": 8}, (64, 64, 3)),
    "efficientnet_lite0": ({}, (64, 64, 3)),
    "convnext_tiny": ({"stage_sizes": (1, 1, 1, 1), "width": 8}, (37, 40, 3)),
    "unet": ({"widths": (2, 2, 3, 3, 4)}, (188, 204, 3)),
    "unet_small": ({"widths": (2, 2, 3, 3, 4)}, (17, 22, 3)),
    "deeplabv3_resnet50": ({"stage_sizes": (1, 1, 1, 1), "width": 8}, (33, 40, 3)),
}


CNNS = zoo.list_models(family="cnn")
DETECTORS = [name for name in CNNS if getattr(zoo.model_info(name).module_class, "detects", False)]  # test_detectors


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_published_parameter_counts_in_millions(name):
    published = ROUNDED[name]
    assert round(zoo.model_info(name).parameters / 1e6, len(str(published).partition(".")[2])) == published


def test_parameter_counts_by_arithmetic():
    conv, dense = 9 * 3 * 32 + 32 + 9 * 32 * 64 + 64, (8 * 8 * 64 + 1) * 1024 + 1025 * 10
    assert zoo.model_info("simple_cnn").parameters == conv + dense
    blocks = sum(9 * before * width + 9 * width**2 + 2 * width for before, width in ((24, 64), (64, 256), (256, 256)))
    assert zoo.model_info("airbench").parameters == 24 + blocks + 256 * 10


@pytest.mark.parametrize(
    "name",
    [name if name in TINY else pytest.param(name, marks=pytest.mark.slow) for name in CNNS if name not in DETECTORS],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_dtypes_and_gradients(name, dtype):
    info = zoo.model_info(name)
    model, ((example,), _) = zoo.create_model(name, dtype=dtype), info.example(2)
    variables = abstract_variables(model, [example])
    params, rest = variables["params"], {key: value for key, value in variables.items() if key != "params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, example)
    assert (logits.shape[0], logits.shape[-1], logits.dtype) == (2, model.num_classes, jnp.dtype(dtype))
    assert logits.ndim == (4 if getattr(model, "segments", False) else 2)

    def loss(params, rest, x):
        rngs = {"dropout": jax.random.key(0)}
        out, changed = model.apply({"params": params, **rest}, x, train=True, rngs=rngs, mutable=list(rest))
        return out.sum(), changed

    gradients, changed = jax.eval_shape(jax.grad(loss, has_aux=True), params, rest, example)
    assert shapes(gradients) == shapes(params)
    assert shapes(changed) == shapes(rest)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


DEEP = ("densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in TINY])
def test_a_tiny_model_runs(name):
    fields, shape = TINY[name]
    model = zoo.create_model(name, num_classes=3, **fields)
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        rest = {key: value for key, value in variables.items() if key != "params"}
        rngs = {"dropout": jax.random.key(1)}
        out, _ = model.apply({"params": params, **rest}, images, train=True, rngs=rngs, mutable=list(rest))
        return jnp.square(out).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all()
    assert np.mean(np.array(norms) > 0) > 0.9  # some biases before a batch norm have none
    logits = jax.jit(model.apply)(variables, images)
    pixels = shape[:2] if getattr(model, "segments", False) else ()
    assert logits.shape == (2, *(side - 2 * getattr(model, "margin", 0) for side in pixels), 3)
    assert np.isfinite(logits).all()


def test_every_architecture_has_a_tiny_model():
    classes = {zoo.model_info(name).module_class for name in CNNS if name not in DETECTORS}
    ours = {cls for cls in classes if cls.__module__.startswith("zoo.")}  # other tests register models of their own
    assert ours == {zoo.model_info(name).module_class for name in TINY}


def test_option_a_shortcuts_have_no_parameters():
    variables = abstract_variables(zoo.create_model("resnet20"), *zoo.model_info("resnet20").example())
    assert not any("downsample" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables))


def test_globs_and_families():
    assert zoo.list_models("resnet?") == ["resnet8"]
    assert zoo.list_models("vgg1[16]*") == ["vgg11", "vgg11_bn", "vgg16", "vgg16_bn"]
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
        ("resnet18", {"num_classes": "ten"}, "num_classes must be int or None, not 'ten'"),
        ("resnet18", {"num_classes": True}, "num_classes must be int or None, not True"),
        ("resnet18", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("resnet18", {"stage_sizes": (2, 0)}, "stage_sizes must be at least 1"),
        ("resnet18", {"stage_sizes": 2}, "stage_sizes must be tuple"),
        ("resnet18", {"block": "wide"}, "block must be one of 'basic', 'bottleneck', not 'wide'"),
        ("lstm_encoder", {"activation": "tanh"}, "activation must be one of 'relu' or None, not 'tanh'"),
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


def test_a_model_of_several_inputs(monkeypatch):
    monkeypatch.setattr("zoo.registry._MODELS", dict(zoo.registry._MODELS))

    @zoo.register("denoiser", family="cnn", input_shape=(4, 4, 1), more_inputs={"time": ((), "int32")})
    class Denoiser(nn.Module):
        @nn.compact
        def __call__(self, x, time, train=False):
            shift = nn.Embed(10, 16)(time)
            return nn.Dense(1)(sow(self, "hidden", x + shift.reshape(x.shape)))

    info = zoo.model_info("denoiser")
    (images,), named = info.example(3)
    assert (images.shape, images.dtype) == ((3, 4, 4, 1), jnp.dtype("float32"))
    assert {name: (array.shape, array.dtype) for name, array in named.items()} == {"time": ((3,), jnp.dtype("int32"))}
    assert info.parameters == 10 * 16 + 2
    assert info.flops == 2 * 16
    assert info.features == {"hidden": (4, 4, 1)}


def test_an_encoder_decoders_example_is_what_its_inputs_give():
    """So that the registry's example and a run's inputs initialise the same model."""
    side = TextInputs("char", "ab", 7)
    args, kwargs = PairInputs(side, side).example()
    model = zoo.create_model("seq2seq_lstm", vocab_size=6, source_vocab_size=6, hidden_size=4, num_layers=1)
    ours, theirs = abstract_variables(model, args, kwargs), abstract_variables(model, *example_of(model))
    assert shapes(ours) == shapes(theirs)
    batch = {
        "source": np.zeros((1, 7), np.int32),
        "target": np.zeros((1, 7), np.int32),
        "source_length": np.ones(1, int),
    }
    given, named = PairInputs(side, side).arguments(batch)
    assert [x.shape for x in given] == [x.shape for x in args]
    assert {k: x.shape for k, x in named.items()} == {k: x.shape for k, x in kwargs.items()}


def test_import_zoo_loads_nothing_heavy():
    heavy = (
        "optax",
        "orbax",
        "tensorstore",
        "PIL",
        "tokenizers",
        "huggingface_hub",
        "torch",
        "tensorflow",
        "tyro",
        "matplotlib",
        "zoo.export",
        "jax2onnx",
        "onnxruntime",
    )
    code = f"import sys, zoo; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("family", ["cnn", "lstm", "seq2seq", "transformer"])
def test_every_file_of_a_familys_folder_is_imported(family):
    files = {path.stem for path in (ROOT / "zoo" / family).glob("*.py")} - {"__init__"}
    assert len(files) >= 5
    assert {f"zoo.{family}.{name}" for name in files} <= set(sys.modules)
    registered = {info.module_class.__module__ for info in map(zoo.model_info, zoo.list_models(family=family))}
    ours = {module for module in registered if module.startswith("zoo.")}  # other tests register models of their own
    assert ours
    assert all(module.startswith(f"zoo.{family}.") for module in ours)


def test_zoo_never_imports_train():
    for path in (ROOT / "zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "train" for name in names), path


@pytest.mark.parametrize(("side", "cells"), [(13, 6), (7, 7), (2, 7), (12, 6)])
def test_adaptive_mean_is_torchs(side, cells):
    """torch.nn.AdaptiveAvgPool2d: from floor(i H / n) to ceil((i + 1) H / n)."""
    row = np.arange(side, dtype=np.float32) ** 2
    expected = [np.mean(row[i * side // cells : math.ceil((i + 1) * side / cells)]) for i in range(cells)]
    pooled = adaptive_mean(jnp.asarray(row)[None, :, None, None] * jnp.ones((1, 1, side, 1)), (cells, cells))
    np.testing.assert_allclose(pooled[0, :, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(pooled[0, :, -1, 0], expected, rtol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return drop_path(x, 0.25, train=True)

    y = np.asarray(Dropped().apply({}, jnp.ones((4000, 2, 2, 3)), rngs={"dropout": jax.random.key(0)}))
    rows = y.reshape(4000, -1)
    assert (rows == rows[:, :1]).all()
    assert set(np.unique(rows)) == {0.0, np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.03  # four standard errors


def test_batch_norm_statistics_stay_float32_in_bfloat16():
    model = zoo.create_model("resnet8", width=4, dtype="bfloat16")
    images = np.random.default_rng(0).normal(5, 1, size=(8, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, changed = step(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}


def test_whitened_patches_are_uncorrelated_with_variance_one():
    rng = np.random.default_rng(0)
    images = np.cumsum(rng.normal(size=(200, 12, 12, 3)), axis=2) @ rng.normal(size=(3, 3))  # neighbours go together
    model = zoo.create_model("airbench", widths=(4, 4, 4))
    variables = jax.jit(model.init)(jax.random.key(0), images.astype(np.float32))
    calibrated = model.calibrate(variables, images.astype(np.float32))
    assert jax.tree.structure(calibrated) == jax.tree.structure(variables)
    kernel = np.asarray(calibrated["constants"]["whiten"]["kernel"])
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    white = np.einsum("nhwcij,ijco->nhwo", windows, whitening_kernel(images, epsilon=0.0))[..., :12].reshape(-1, 12)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(12), atol=1e-6)
