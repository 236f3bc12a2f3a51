"""Models of Keras's by their files: the outputs of the same layers in the zoo; other layers and damaged files."""

import contextlib
import io
import os
import zipfile

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="parity compares with keras")
h5py = pytest.importorskip("h5py", reason="its files are read by h5py")

import zoo  # noqa: E402
from zoo.__main__ import main  # noqa: E402
from zoo.weights import convert_torch  # noqa: E402

pytestmark = pytest.mark.parity
L = keras.layers


def shaken(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 0.5, w.shape) * rng.choice([1, 1, -1]) for w in model.get_weights()])
    return model


def lenet():
    return shaken(
        keras.Sequential(
            [
                keras.Input((32, 32, 1)),
                L.Conv2D(6, 5, activation="tanh", name="conv1"),
                L.AveragePooling2D(2),
                L.Conv2D(16, 5, activation="tanh", name="conv2"),
                L.AveragePooling2D(2),
                L.Flatten(),
                L.Dense(120, activation="tanh", name="fc1"),
                L.Dense(84, activation="tanh", name="fc2"),
                L.Dense(10, name="fc3"),
            ]
        )
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_cnn(suffix, tmp_path, capsys):
    other = lenet()
    other.save(tmp_path / f"x{suffix}")
    assert main(["convert", str(tmp_path / f"x{suffix}"), str(tmp_path / "x.safetensors")]) == 0
    assert capsys.readouterr().out.endswith("10 tensors\n")
    variables = zoo.load_weights("lenet5", tmp_path / "x.safetensors")
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 1)).astype(np.float32)
    ours, theirs = zoo.create_model("lenet5").apply(variables, x), np.asarray(other(x))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_classifier(cell, suffix, tmp_path):
    layer = {"lstm": L.LSTM, "gru": L.GRU}[cell]
    other = shaken(
        keras.Sequential(
            [
                keras.Input((7,), dtype="int32"),
                L.Embedding(11, 4, name="embedding"),
                L.Bidirectional(layer(5, return_sequences=True), name="first"),
                L.Bidirectional(layer(5), name="second"),
                L.Dense(3, name="head"),
            ]
        )
    )
    other.save(tmp_path / f"x{suffix}")
    convert_torch(tmp_path / f"x{suffix}", tmp_path / "x.safetensors")
    fields = {"vocab_size": 11, "embedding_size": 4, "hidden_size": 5, "num_classes": 3, "num_layers": 2}
    model = zoo.create_model("lstm_classifier", cell=cell, **fields)
    rename = {"^first": "layers", r"^second\.(.*)_l0": r"layers.\1_l1"}
    variables = zoo.load_weights(model, tmp_path / "x.safetensors", rename=rename)
    tokens = np.random.default_rng(1).integers(0, 11, (2, 7)).astype(np.int32)
    ours, theirs = model.apply(variables, tokens), np.asarray(other(tokens))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_norms_and_depthwise_convolutions(tmp_path):
    other = shaken(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                L.DepthwiseConv2D(3, name="dw", use_bias=False),
                L.BatchNormalization(name="bn", scale=False),
                L.Activation("relu"),
                L.GlobalAveragePooling2D(),
            ]
        )
    )
    other.save(tmp_path / "x.keras")
    found = zoo.weights.keras_file.read(tmp_path / "x.keras")
    assert {name: array.shape for name, array in found.items()} == {
        **{
            "dw.weight": (3, 1, 3, 3),
            "bn.weight": (3,),
            "bn.bias": (3,),
            "bn.running_mean": (3,),
            "bn.running_var": (3,),
        }
    }
    kernel, beta, mean, variance = other.get_weights()
    np.testing.assert_array_equal(found["dw.weight"][:, 0], kernel[..., 0].transpose(2, 0, 1))
    np.testing.assert_array_equal(found["bn.weight"], np.ones(3))
    for name, expected in (("bias", beta), ("running_mean", mean), ("running_var", variance)):
        np.testing.assert_array_equal(found[f"bn.{name}"], expected)


def refused(path, message):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        convert_torch(path, path.with_suffix(".safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: L.LSTM(2, activation="relu", name="x"), "layer 'x' must have the activation tanh, not relu"),
        (lambda: L.GRU(2, reset_after=False, name="x"), "layer 'x' must have reset_after"),
        (lambda: L.SimpleRNN(2, name="x"), "layer 'x' is a SimpleRNN; the layers that are read are Dense, Conv2D"),
        (lambda: L.Conv1D(2, 2, name="x"), "layer 'x' is a Conv1D"),
        (lambda: keras.Sequential([L.Dense(2)], name="x"), "layer 'x' is a Sequential"),
    ],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_that_are_not_read(layer, message, suffix, tmp_path):
    keras.Sequential([keras.Input((4, 3)), layer()]).save(tmp_path / f"x{suffix}")
    refused(tmp_path / f"x{suffix}", message)


def test_damaged_and_hostile_files_get_one_line(tmp_path):
    other = lenet()
    other.save(tmp_path / "x.keras")
    other.save_weights(tmp_path / "y.weights.h5")
    refused(tmp_path / "y.weights.h5", "has weights alone; give the file of the whole model")
    (tmp_path / "secret.txt").write_bytes(bytes(480))
    with zipfile.ZipFile(tmp_path / "x.keras") as archive:
        config, weights = archive.read("config.json"), archive.read("model.weights.h5")
    stream = io.BytesIO(weights)
    with h5py.File(stream, "r+") as file:
        del file["layers/conv2d/vars/0"]
        file.create_dataset(
            "layers/conv2d/vars/0", (5, 5, 1, 6), "f4", external=[(str(tmp_path / "secret.txt"), 0, 600)]
        )
    for name, content in {
        "config.json": b"{",
        "model.weights.h5": weights[:2000],
        "external": stream.getvalue(),
    }.items():
        with zipfile.ZipFile(tmp_path / "z.keras", "w") as archive:
            archive.writestr("config.json", content if name == "config.json" else config)
            archive.writestr("model.weights.h5", weights if name == "config.json" else content)
        refused(tmp_path / "z.keras", "is no model of Keras's, or is damaged")
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(weights)
        for place in rng.integers(0, min(len(weights), 20000), 4):
            changed[place] = rng.integers(0, 256)
        with zipfile.ZipFile(tmp_path / "z.keras", "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", bytes(changed))
        with contextlib.suppress(zoo.ZooError):
            zoo.weights.keras_file.read(tmp_path / "z.keras")
