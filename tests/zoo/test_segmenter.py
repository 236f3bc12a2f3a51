"""Images to masks: inputs, whole images by tiles, and python -m zoo predict."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.__main__ import main
from zoo.inputs import SegmentationInputs, inputs_from_json
from zoo.run import Run
from zoo.segmenter import Segmenter, palette
from zoo.serve.models import Bounds, served

INPUTS = SegmentationInputs((16, 16, 1), (0.5,), (0.25,), ("cell", "wall", "other"))
IMAGE = np.random.default_rng(0).integers(0, 256, (21, 34), np.uint8)


@pytest.fixture
def run():
    model = zoo.create_model("unet_small", widths=(4, 6), num_classes=3)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    return Run(model, variables, INPUTS)


@pytest.fixture
def folder(tmp_path, run, monkeypatch):
    """A folder of the run's weights, and an image."""
    zoo.save_weights(run.variables, tmp_path / "model.safetensors")
    about = {"name": "unet_small", "args": {"widths": [4, 6], "num_classes": 3}}
    (tmp_path / "config.json").write_text(json.dumps({"model": about, "inputs": INPUTS.to_json()}))
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inputs_keep_an_images_size_and_survive_json():
    assert inputs_from_json(json.loads(json.dumps(INPUTS.to_json()))) == INPUTS
    found = INPUTS.encode(IMAGE)
    np.testing.assert_allclose(found[..., 0], (IMAGE / 255 - 0.5) / 0.25, atol=1e-5)
    assert INPUTS.batch([IMAGE, IMAGE])["image"].shape == (2, 21, 34, 1)
    with pytest.raises(zoo.ZooError, match="images of one size, not of 2"):
        INPUTS.batch([IMAGE, IMAGE[:20]])
    assert INPUTS.model_args() == {"num_classes": 3}


def test_an_image_of_any_size_has_probabilities_of_its_own_size(run):
    for height, width in ((21, 34), (16, 16), (5, 34), (1, 1)):
        found = Segmenter(run)(IMAGE[:height, :width])
        assert found.shape == (height, width, 3)
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    alone = run.model.apply(run.variables, INPUTS.encode(IMAGE[:16, :16])[None])[0]
    np.testing.assert_array_equal(Segmenter(run)(IMAGE[:16, :16]).argmax(-1), alone.argmax(-1))


def test_a_run_of_another_kind_segments_nothing():
    with pytest.raises(zoo.ZooError, match="a run that segments images is needed; this one takes images"):
        Segmenter(zoo.load("lenet5"))


def test_a_palette_has_a_colour_a_class():
    colours = np.array(palette(255)).reshape(-1, 3)
    assert len(np.unique(colours[:15], axis=0)) == 15
    assert colours.shape == (255, 3)
    assert (colours[0] == 0).all()


def test_predict_writes_a_mask_and_prints_shares(folder, run, capsys):
    assert main(["predict", ".", "photo.png", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["file"], line["mask"]) == ("photo.png", "photo_mask.png")
    with Image.open("photo_mask.png") as image:
        assert (image.mode, image.size) == ("P", (34, 21))
        assert image.getpalette()[:9] == palette(3)
        mask = np.asarray(image)
    np.testing.assert_array_equal(mask, Segmenter(run)(IMAGE).argmax(-1))
    for number, found in enumerate(line["labels"]):
        assert found["label"] == INPUTS.labels[number]
        assert found["share"] == pytest.approx((mask == number).mean(), abs=1e-6)


def test_predict_overwrites_nothing_unasked(folder, capsys):
    (folder / "photo_mask.png").write_text("mine")
    assert main(["predict", ".", "absent.png", "photo.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert "no image file 'absent.png'" in first
    assert second == "error: 'photo_mask.png' exists; move it away, or replace it with --overwrite"
    assert (folder / "photo_mask.png").read_text() == "mine"
    assert main(["predict", ".", "photo.png", "--overwrite"]) == 0
    assert capsys.readouterr().out.endswith("%; photo_mask.png\n")
    (folder / "sub").mkdir()
    Image.fromarray(IMAGE).save(folder / "sub" / "photo.png")
    assert main(["predict", ".", "photo.png", "sub/photo.png", "--overwrite"]) == 2
    assert "would have the mask 'photo_mask.png' of another image" in capsys.readouterr().err


def test_predict_of_a_segmenter_has_no_top_k(folder, capsys):
    assert main(["predict", ".", "photo.png", "--top-k", "2"]) == 2
    expected = "error: --top-k and --labels are for classes of whole images; this run has classes of their parts\n"
    assert capsys.readouterr().err == expected


def test_a_segmenter_is_not_served(run):
    with pytest.raises(zoo.ZooError, match="UNet with inputs of kind 'segmentation' is not served"):
        served(run, Bounds())
