"""Names of tensors: each once in every layout, found again below wrappers' prefixes, renamed where it is asked for."""

import random
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo.errors import ZooError
from zoo.registry import abstract_variables, example_of
from zoo.transformer.layers import unstacked
from zoo.weights import huggingface, native, recurrent, save_native, torchvision
from zoo.weights.names import renamed, without_prefix

VECTOR = np.ones(3, np.float32)
ENCODER = {"hidden_size": 8, "num_layers": 1, "embedding_size": 4}


def variables_of(name, **fields):
    model = zoo.create_model(name, **fields)
    shapes = abstract_variables(model, *example_of(model))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


ONE_OF_EACH_CLASS = {zoo.model_info(name).module_class: name for name in reversed(zoo.list_models())}


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH_CLASS.values()))
def test_every_array_of_every_model_has_a_name_of_its_own(name):
    info = zoo.model_info(name)
    shapes = jax.eval_shape(unstacked, abstract_variables(info.constructor(), *info.example()))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    assert len(native.names(shapes)) == len(leaves)
    layout = huggingface.layout_of(shapes)
    if layout is not None:
        assert sum(map(len, layout._groups(shapes).values())) == len(leaves)
    elif any(path[-1].key == "recurrent_kernel" for path, _ in leaves):
        assert len(recurrent.names(shapes)) == len(leaves)
    else:
        assert len(torchvision.names(shapes)) == len(leaves)


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "mobilenet_v2", "lstm_classifier", "lstm_encoder", "minilm_l6"])
def test_what_is_saved_has_every_array_and_is_read_back(name, tmp_path):
    small = {"minilm_l6": {"vocab_size": 11, "hidden_size": 12, "mlp_size": 8}, "lstm_encoder": ENCODER}
    model, variables = variables_of(name, **small.get(name, {}))
    for save in (zoo.save_weights, save_native):
        path = tmp_path / f"{save.__name__}.safetensors"
        save(variables, path)
        loaded = zoo.load_weights(model, path)
        assert jax.tree.structure(loaded) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert len(load_file(tmp_path / "save_native.safetensors")) == len(jax.tree.leaves(variables))


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
def test_parameters_alone_are_refused(save, tmp_path):
    _, variables = variables_of("resnet8")
    for given in (variables["params"], variables["params"]["conv1"], {}, [VECTOR], VECTOR, {"params": VECTOR}):
        with pytest.raises(ZooError, match=r"variables must be collections such as \{'params': ...,"):
            save(given, tmp_path / "w.safetensors")
    for given in ({"a": [VECTOR]}, {"a": 3.0}, {1: VECTOR}, {"a": "b"}):
        with pytest.raises(ZooError, match="variables must be nested dicts of arrays; params/"):
            save({"params": given}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


CLASHES = {
    "torchvision": {"conv": {"kernel": np.ones((2, 3), np.float32), "scale": VECTOR}},
    "torchvision_dots": {"layer_1": {"bias": VECTOR}, "layer": {"1": {"bias": VECTOR}}, "layer.1": {"bias": VECTOR}},
    "recurrent": {
        "layers": {"layer0": {"recurrent_kernel": np.ones((2, 8), np.float32), "kernel": np.ones((2, 8), np.float32)}},
        "norm": {"scale": VECTOR, "embedding": VECTOR},
    },
}


@pytest.mark.parametrize("layout", CLASHES)
def test_two_arrays_of_one_name_are_an_error(layout, tmp_path):
    with pytest.raises(ZooError, match=r"would both be the tensor '.*' in the file; use zoo.weights.save_native"):
        zoo.save_weights({"params": CLASHES[layout]}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    if "dots" not in layout:
        save_native({"params": CLASHES[layout]}, tmp_path / "w.safetensors")
        assert len(load_file(tmp_path / "w.safetensors")) == len(jax.tree.leaves(CLASHES[layout]))


def test_two_arrays_of_one_name_are_an_error_for_hugging_face_too(tmp_path):
    fields = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_length": 8}
    for name in ("bert_base", "gpt2", "llama3_1b"):
        variables = variables_of(name, **fields, mlp_size=8, **({"num_kv_heads": 2} if "llama" in name else {}))[1]
        attention = variables["params"]["layers"]["layer0"]["attention"]
        attention["out"]["scale"] = VECTOR
        with pytest.raises(ZooError, match=r"layer0/attention/out/kernel and .*/scale would both be the tensor"):
            zoo.save_weights(variables, tmp_path / "w.safetensors")


def test_scalars_and_dtypes_stay_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32, np.float16, "bfloat16"):
        values = {"scale": np.asarray(rng.normal(), jax.numpy.dtype(dtype)), "bias": np.ones((0, 2), np.int64)}
        for save in (zoo.save_weights, save_native):
            save({"params": values}, tmp_path / "w.safetensors", overwrite=True)
            shapes = {(a.shape, a.dtype) for a in load_file(tmp_path / "w.safetensors").values()}
            assert (values["scale"].shape, values["scale"].dtype) in shapes


PREFIXES = ["module.", "model.", "_orig_mod.", "module._orig_mod.", "net.backbone.", "my_own.encoder.0.", "fc."]


@pytest.mark.parametrize("name", ["resnet8", "lenet5", "lstm_classifier", "minilm_l6", "gpt2", "vit_tiny16"])
def test_a_prefix_that_all_tensors_share_is_left_out(name, tmp_path):
    sizes = {"vocab_size": 11, "hidden_size": 12, "num_layers": 1, "max_length": 8}
    fields = {"minilm_l6": sizes, "gpt2": {**sizes, "num_heads": 2}}
    fields |= {"vit_tiny16": {"hidden_size": 12, "num_layers": 1, "image_size": 32}}
    model, variables = variables_of(name, **fields.get(name, {}))
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    for prefix in PREFIXES:
        tensors = {prefix + name: tensor for name, tensor in load_file(tmp_path / "w.safetensors").items()}
        save_file({**tensors, "n_averaged": np.ones((), np.int64)}, tmp_path / "wrapped.safetensors")
        loaded = zoo.load_weights(model, tmp_path / "wrapped.safetensors")
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_prefix_stays_where_the_names_need_it():
    seeded = random.Random(0)
    words = ["module", "model", "features", "a", "layer1", "0", "weight"]
    for _ in range(300):
        names = {".".join(seeded.choices(words, k=seeded.randint(1, 4))) + f".{i}" for i in range(seeded.randint(1, 6))}
        tensors = dict.fromkeys(names, VECTOR)
        assert set(without_prefix(tensors, names.__contains__)) == names
        before = "".join(f"{word}." for word in seeded.choices(words, k=seeded.randint(0, 3)))
        wrapped = {before + name: VECTOR for name in names}
        assert set(without_prefix(wrapped, names.__contains__)) == names


def test_renaming_by_patterns(tmp_path):
    """The published speaker encoder of Resemblyzer: other names, and two scalars that have no place."""
    model, variables = variables_of("lstm_encoder", **ENCODER)
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    theirs = {"layers.": "lstm.", "head.": "linear."}
    tensors = {
        re.sub("|".join(theirs), lambda found: theirs[found[0]], name): tensor
        for name, tensor in load_file(tmp_path / "w.safetensors").items()
    }
    tensors |= {"similarity_weight": np.ones(1, np.float32), "similarity_bias": np.ones(1, np.float32)}
    assert "lstm.weight_ih_l0" in tensors
    save_file(tensors, tmp_path / "theirs.safetensors")
    rename = {r"^lstm\.": "layers.", r"^linear\.": "head.", "^similarity_": None}
    loaded = zoo.load_weights(model, tmp_path / "theirs.safetensors", rename=rename)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ZooError, match=r"unexpected: .*similarity_bias"):
        zoo.load_weights(model, tmp_path / "theirs.safetensors", rename={k: v for k, v in rename.items() if v})


def test_patterns_apply_in_order_and_lose_no_tensor():
    tensors = {"a.weight": 1, "b.weight": 2, "c.bias": 3}
    assert renamed(tensors, {"^a": "x", "^x": "y", r"(\w+)\.bias": r"\1_bias"}) == {
        "y.weight": 1,
        "b.weight": 2,
        "c_bias": 3,
    }
    assert renamed(tensors, {"weight": None}) == {"c.bias": 3}
    for rename, match in [
        ({"^a": "b"}, "'\\^a' gives two tensors the name 'b.weight'"),
        ({"d": "e"}, "no tensor has 'd' in its name; there are a.weight, b.weight, c.bias"),
        ({"(": "e"}, r"'\(' to 'e' is no regular expression"),
        ({"a": r"\1"}, r"is no regular expression: invalid group reference"),
    ]:
        with pytest.raises(ZooError, match=match):
            renamed(tensors, rename)
