"""Weights in files: every tensor in its place, or an error that names it; nothing half loaded."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo.weights import save_native

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def model():
    return zoo.create_model("resnet8", width=4)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(1), np.zeros((1, *SHAPE), np.float32))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
def test_round_trip_is_exact(save, model, variables, tmp_path):
    save(variables, tmp_path / "w.safetensors")
    assert_same(zoo.load_weights(model, tmp_path / "w.safetensors"), variables)
    assert_same(zoo.load_weights("resnet8", tmp_path / "w.safetensors", width=4), variables)


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
def test_bfloat16_weights_round_trip(save, tmp_path):
    model = zoo.create_model("resnet8", width=4, param_dtype="bfloat16")
    variables = model.init(jax.random.key(1), np.zeros((1, *SHAPE), np.float32))
    assert variables["params"]["fc"]["kernel"].dtype.name == "bfloat16"
    save(variables, tmp_path / "w.safetensors")
    assert_same(zoo.load_weights(model, tmp_path / "w.safetensors"), variables)


def test_a_dense_layer_over_a_map_keeps_its_geometry(tmp_path):
    model = zoo.create_model("simple_cnn", hidden_size=5)
    variables = model.init(jax.random.key(1), np.zeros((1, 8, 12, 1), np.float32))
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")["fc1.weight"]
    assert stored.shape == (5, 64 * 2 * 3)
    ours = np.asarray(variables["params"]["fc1"]["kernel"])  # [2, 3, 64, 5]
    np.testing.assert_array_equal(stored[4].reshape(64, 2, 3)[:, 1, 2], ours[1, 2, :, 4])
    assert_same(zoo.load_weights(model, tmp_path / "w.safetensors", (8, 12, 1)), variables)
    with pytest.raises(zoo.ZooError, match=r"misshapen: .*fc1.weight \(\(5, 384\), not \(5, 4096\)\)"):
        zoo.load_weights(model, tmp_path / "w.safetensors")


def test_every_wrong_tensor_is_named(model, variables, tmp_path):
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    del tensors["bn1.bias"]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    tensors["layer1.0.conv1.weight"] = np.zeros((4, 4, 5, 5), np.float32)
    tensors["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(zoo.ZooError) as error:
        zoo.load_weights(model, tmp_path / "bad.safetensors")
    message = str(error.value)
    assert "missing: bn1.bias; unexpected: extra.weight; misshapen: layer1.0.conv1.weight" in message
    assert "((4, 4, 5, 5), not (4, 4, 3, 3))" in message
    assert "num_batches_tracked" not in message
    assert "\n" not in message


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
def test_another_number_of_classes_replaces_the_head_and_says_so(save, variables, tmp_path):
    save(variables, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=r"no head for this number of classes; the head 'fc' \(3\) is drawn anew"):
        loaded = zoo.load_weights("resnet8", tmp_path / "w.safetensors", width=4, num_classes=3)
    head = loaded["params"].pop("fc")
    assert head["kernel"].shape == (16, 3)
    assert np.asarray(head["kernel"]).std() > 0
    rest = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "fc"}}
    assert_same(loaded, rest)


def test_a_head_that_differs_in_more_than_classes_is_misshapen(model, variables, tmp_path):
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    tensors["fc.weight"] = np.zeros((3, 99), np.float32)
    tensors["fc.bias"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(zoo.ZooError, match=r"misshapen: fc.bias .*fc.weight"):
        zoo.load_weights(model, tmp_path / "bad.safetensors")


def test_a_foreign_name_in_our_own_layout_is_unexpected(model, variables, tmp_path):
    save_native(variables, tmp_path / "w.safetensors")
    save_file(
        {**load_file(tmp_path / "w.safetensors"), "foreign": np.zeros(3, np.float32)}, tmp_path / "bad.safetensors"
    )
    with pytest.raises(zoo.ZooError, match="unexpected: foreign"):
        zoo.load_weights(model, tmp_path / "bad.safetensors")


def test_integers_are_no_weights(model, variables, tmp_path):
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.int32)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(zoo.ZooError, match=r"bn1.bias \(int32, not floating point\)"):
        zoo.load_weights(model, tmp_path / "bad.safetensors")


def test_files_that_are_damaged_or_something_else(model, variables, tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(variables, path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    for name in ("cut.safetensors", "text.safetensors", "model.pth"):
        with pytest.raises(zoo.ZooError, match="not a readable"):
            zoo.load_weights(model, tmp_path / name)
    with pytest.raises(zoo.ZooError, match="python -m zoo convert"):
        zoo.load_weights(model, tmp_path / "model.pth")
    with pytest.raises(zoo.ZooError, match="no weights file"):
        zoo.load_weights(model, tmp_path / "absent.safetensors")


def test_nothing_is_overwritten(variables, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_text("precious")
    with pytest.raises(zoo.ZooError, match="exists; remove it or choose another name"):
        zoo.save_weights(variables, path)
    assert path.read_text() == "precious"
    zoo.save_weights(variables, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_file_that_cannot_be_written_is_told_of_in_a_line(variables, tmp_path):
    with pytest.raises(zoo.ZooError, match=r"could not write '.*absent/w.safetensors': .*No such file"):
        save_native(variables, tmp_path / "absent" / "w.safetensors")
