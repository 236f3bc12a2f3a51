"""From files to what a model was trained on, and back."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.inputs import inputs_from_json
from zoo.inputs.image import ImageInputs

RGB = ImageInputs((8, 6, 3), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("cat", "dog"))
GREY = ImageInputs((8, 8, 1), (0.3,), (0.4,), ("0", "1"))


@pytest.mark.parametrize("inputs", [RGB, GREY])
def test_decode_inverts_encode(inputs):
    pixels = np.random.default_rng(0).integers(0, 256, inputs.shape, np.uint8)
    array = inputs.encode(pixels)
    assert (array.shape, array.dtype) == (inputs.shape, np.float32)
    np.testing.assert_array_equal(inputs.decode(array), pixels)


def test_normalisation_is_that_of_the_training_set():
    pixels = np.full(RGB.shape, 255, np.uint8)
    np.testing.assert_allclose(RGB.encode(pixels)[0, 0], [0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4], rtol=1e-6)


def test_normalize_inside_jit_is_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (2, *RGB.shape), np.uint8)
    np.testing.assert_allclose(jax.jit(RGB.normalize)(pixels), RGB.normalize(pixels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
@pytest.mark.parametrize("inputs", [RGB, GREY])
def test_files_of_any_mode_become_what_the_model_takes(mode, inputs, tmp_path):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (20, 30)).save(path)
    assert inputs.encode(path).shape == inputs.shape


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    np.testing.assert_array_equal(GREY.pixels(tmp_path / "16.png")[..., 0], ramp >> 8)


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (6, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (RGB.pixels(tmp_path / "clear.png") == 255).all()
    Image.new("RGBA", (6, 8), (10, 20, 30, 255)).save(tmp_path / "solid.png")
    assert (RGB.pixels(tmp_path / "solid.png") == (10, 20, 30)).all()
    Image.new("LA", (8, 8), (7, 0)).save(tmp_path / "grey.png")
    assert (GREY.pixels(tmp_path / "grey.png") == 255).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (6, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (RGB.pixels(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_a_cameras_rotation_is_undone(tmp_path):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4] = 255  # bright on the left; told to be turned by 90 degrees clockwise, bright above
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = RGB.pixels(tmp_path / "a.png")
    assert upright[0].min() == 255
    assert upright[-1].max() == 0


def test_a_files_content_counts_not_its_name(tmp_path):
    Image.new("RGB", (6, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert (RGB.pixels(tmp_path / "a.jpg") == (255, 0, 0)).all()


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(zoo.ZooError, match=r"a.tiff' has pixels of float32, from 0.5 to 0.5: the model's inputs"):
        GREY.encode(tmp_path / "a.tiff")


def test_other_sizes_are_scaled_and_cut_at_the_centre():
    wide = np.zeros((8, 40), np.uint8)
    wide[:, 16:24] = 255
    np.testing.assert_array_equal(GREY.pixels(wide)[..., 0], 255)
    tall = np.repeat(np.uint8([[0], [100], [200]]), 8, 0).repeat(8, 1)  # 24 x 8, three bands
    np.testing.assert_array_equal(GREY.pixels(tall)[..., 0], 100)


def test_a_float_array_or_wrong_object_is_refused():
    for raw in (np.zeros((8, 8)), np.zeros((8, 8, 5), np.uint8), np.zeros((8, 8), np.int64), 3):
        with pytest.raises(zoo.ZooError, match="an image"):
            GREY.encode(raw)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 64), (200, 10, 30)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    for name in ("empty.png", "text.png", "cut.png", "."):
        with pytest.raises(zoo.ZooError, match="is not a readable image"):
            GREY.encode(tmp_path / name)
    with pytest.raises(zoo.ZooError, match="no image file"):
        GREY.encode(tmp_path / "absent.png")


def test_json_round_trip():
    assert inputs_from_json(RGB.to_json()) == RGB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be an object"),
        ({"kind": "imag"}, "did you mean image"),
        ({"kind": "image", "shape": [1]}, "do not fit"),
        ({"kind": "image", "shape": [8, 8, 3], "mean": [1], "std": [1], "labels": []}, "one per channel"),
    ],
)
def test_wrong_descriptions_are_refused(data, message):
    with pytest.raises(zoo.ZooError, match=message):
        inputs_from_json(data)


SPECTRA = """
import dataclasses
from typing import ClassVar

import jax
import numpy as np

from zoo.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class SpectraInputs(Inputs):
    steps: int
    labels: tuple[str, ...] = ()

    kind: ClassVar[str] = "spectra"

    @property
    def shape(self):
        return (self.steps, 40)

    def encode(self, raw):
        return np.resize(np.asarray(raw, np.float32), self.shape)

    def decode(self, array):
        return np.asarray(array).tolist()

    def batch(self, raws):
        return {"series": np.stack([self.encode(raw) for raw in raws])}

    def arguments(self, batch):
        return (batch["series"],), {}

    def example(self):
        return (jax.ShapeDtypeStruct((1, *self.shape), np.dtype(np.float32)),), {}
"""


def test_inputs_of_ones_own_are_read_back_by_load(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.inputs.base._KINDS", dict(zoo.inputs.base._KINDS))
    (tmp_path / "my_spectra.py").write_text(SPECTRA)
    monkeypatch.syspath_prepend(tmp_path)
    run, args = tmp_path / "run", {"hidden_size": 4, "num_layers": 1, "embedding_size": 3}
    model = zoo.create_model("lstm_encoder", **args)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 5, 40), np.float32))
    run.mkdir()
    zoo.weights.save_native(variables, run / "model.safetensors")
    described = {"name": "lstm_encoder", "args": args}
    (run / "config.json").write_text(json.dumps({"model": described, "inputs": {"kind": "spectra", "steps": 5}}))
    with pytest.raises(
        zoo.ZooError,
        match="unknown kind of inputs 'spectra'; there are detection, image, image-text, pair",
    ):
        zoo.load(run)
    own = importlib.import_module("my_spectra")
    try:
        found = zoo.load(run)
    finally:
        del sys.modules["my_spectra"]
    assert found.inputs == own.SpectraInputs(5)
    assert inputs_from_json(json.loads(json.dumps(found.inputs.to_json()))) == found.inputs
    assert found.inputs.model_args() == {}
    positional, named = found.inputs.arguments(found.inputs.batch([range(7), range(3)]))
    assert found.model.apply(found.variables, *positional, **named).shape == (2, 3)


def test_a_kind_that_is_taken_or_inherited(monkeypatch):
    monkeypatch.setattr("zoo.inputs.base._KINDS", dict(zoo.inputs.base._KINDS))
    with pytest.raises(zoo.ZooError, match="the kind of inputs 'image' is taken by ImageInputs; choose another"):
        type("Other", (zoo.inputs.Inputs,), {"kind": "image"})
    type("Larger", (ImageInputs,), {})  # with no kind of its own
    assert zoo.inputs.base._KINDS["image"] is ImageInputs
