"""The weights that come with the zoo: small, described, usable at once, and as good as their card says."""

import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
import zoo.__main__
from train.__main__ import main
from zoo.registry import PRETRAINED

NAMES = sorted(path.parent.name for path in PRETRAINED.glob("*/model.safetensors"))
ROOT = pathlib.Path(__file__).parents[2]


def test_they_are_small_and_described():
    assert {"lenet5", "resnet20"} <= set(NAMES)
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*")) < 2e6
    for name in NAMES:
        card = zoo.model_info(name).pretrained
        assert set(card) == {"data", "accuracy", "command", "seed", "licence"}
        assert card["licence"] in (PRETRAINED / name / "README.md").read_text()
    assert zoo.model_info("alexnet").pretrained is None


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_model_predicts_with_fields_overridden(name):
    run = zoo.load(name)
    images = np.random.default_rng(0).normal(size=(2, *run.inputs.shape)).astype(np.float32)
    expected = jax.jit(run.model.apply)(run.variables, images)
    assert expected.shape == (2, len(run.inputs.labels))
    half = zoo.load(name, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.variables["params"])} == {"bfloat16"}
    found = jax.jit(half.model.apply)(half.variables, images)
    assert found.dtype.name == "bfloat16"
    scale = np.abs(expected).max()
    assert 0 < np.abs(found.astype(np.float32) - expected).max() < 0.1 * scale  # bfloat16 has 8 bits, 20 layers


def test_another_number_of_classes_draws_the_head_anew():
    with pytest.warns(UserWarning, match="the head 'fc3' \\(3\\) is drawn anew"):
        run = zoo.load("lenet5", num_classes=3)
    assert run.model.num_classes == 3
    assert run.variables["params"]["fc3"]["kernel"].shape == (84, 3)


def test_a_model_without_weights_says_which_have_some():
    with pytest.raises(
        zoo.ZooError, match="there are no public weights of alexnet; python -m zoo list --weights has those"
    ):
        zoo.load("alexnet")
    with pytest.raises(zoo.ZooError, match=r"'lenet' does not exist: give .* did you mean lenet5"):
        zoo.load("lenet")


def test_overrides_that_do_not_fit_are_refused():
    with pytest.raises(zoo.ZooError, match="resnet20 has no field 'depth'"):
        zoo.load("resnet20", depth=3)
    with pytest.raises(zoo.ZooError, match="the stored model does not fit ResNet: misshapen: "):
        zoo.load("resnet20", width=8)


def test_create_model_loads_no_weights():
    with pytest.raises(zoo.ZooError, match=r"create_model loads no weights; zoo.load\('lenet5'\) gives"):
        zoo.create_model("lenet5", pretrained=True)


def test_predict_by_name(tmp_path, capsys):
    stroke = np.zeros((28, 28), np.uint8)
    stroke[4:24, 13:16] = 255
    Image.fromarray(stroke).save(tmp_path / "one.png")
    assert zoo.__main__.main(["predict", "lenet5", str(tmp_path / "one.png")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/one.png: 1 ")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_are_as_good_as_the_card_says(name, capsys):
    card = zoo.model_info(name).pretrained
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not (pathlib.Path(folder) / card["data"]).is_dir():
        pytest.skip(f"{card['data']} is not prepared in $TFDS_DATA_DIR")
    assert main(["evaluate", name, "--data.name", card["data"]]) == 0
    assert f"accuracy {card['accuracy']}" in capsys.readouterr().out
