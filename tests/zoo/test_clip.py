"""CLIP: scores, folders, zero-shot classes, and what wrong input gets. `tests/parity` compares with transformers."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.__main__ import main
from zoo.inputs import ImageInputs, ImageTextInputs, TextInputs, inputs_from_json
from zoo.inputs.text import learn

SMALL = {
    **{"vocab_size": 40, "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_layers": 1, "num_heads": 2},
    **{"max_length": 12, "text_hidden_size": 8, "text_num_layers": 1, "text_num_heads": 2, "embedding_size": 6},
}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
TEXTS = np.random.default_rng(1).integers(1, 40, (2, 5)).astype(np.int32)


@functools.cache
def tiny():
    model = zoo.create_model("clip_vit_base32", **SMALL)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES, TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers writes it, with a tokenizer of words."""
    found = tmp_path_factory.mktemp("clip") / "clip"
    model, variables = tiny()
    zoo.save_pretrained(model, variables, found)
    inputs = learn("wordpiece", ["a photo of a cat. a photo of a dog."] * 3, 40, 12)
    (found / "tokenizer.json").write_text(inputs.vocabulary)
    about = {"size": {"shortest_edge": 8}, "crop_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (found / "preprocessor_config.json").write_text(json.dumps(about))
    return found


def test_scores_are_scaled_cosines():
    model, variables = tiny()
    images = np.asarray(model.apply(variables, IMAGES, method="encode_image"))
    texts = np.asarray(model.apply(variables, TEXTS, method="encode_text"))
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.apply(variables, IMAGES, TEXTS), images @ texts.T / 0.07, rtol=1e-4, atol=1e-4)


def test_a_text_ends_with_its_last_token():
    model, variables = tiny()
    alone = model.apply(variables, TEXTS[:, :3], method="encode_text")
    padded = model.apply(variables, TEXTS, np.array([3, 3]), method="encode_text")
    np.testing.assert_allclose(alone, padded, atol=1e-6)


def test_inputs_are_read_back_from_json():
    inputs = ImageTextInputs(ImageInputs((8, 8, 3), (0.5,) * 3, (0.5,) * 3, ()), TextInputs("byte", "", 12))
    assert inputs_from_json(json.loads(json.dumps(inputs.to_json()))) == inputs
    batch = inputs.batch([(np.zeros((8, 8, 3), np.uint8), "a cat"), (np.ones((8, 8, 3), np.uint8), "dogs")])
    args, kwargs = inputs.arguments(batch)
    assert args[0].shape == (2, 8, 8, 3)
    assert kwargs["texts"].shape == (2, 12)
    assert kwargs["lengths"].tolist() == [5, 4]
    with pytest.raises(zoo.ZooError, match="text must be inputs of kind text, not 3"):
        ImageTextInputs(inputs.image, 3)


def test_labels_make_a_classifier(folder, tmp_path, capsys):
    run = zoo.load(folder)
    classifier = zoo.zero_shot(run, ["cat", "dog"])
    tokens, lengths = run.inputs.texts(["a photo of a cat.", "a photo of a dog."])
    logits = classifier.model.apply(classifier.variables, IMAGES)
    np.testing.assert_allclose(logits, run.model.apply(run.variables, IMAGES, tokens, lengths), rtol=1e-4, atol=1e-4)
    assert classifier.inputs.labels == ("cat", "dog")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (9, 13, 3), np.uint8)).save(photo)
    assert not main(["predict", str(folder), str(photo), "--json", "--labels", "dog", "cat"])
    found = json.loads(capsys.readouterr().out)["labels"]
    row = jax.nn.softmax(classifier.model.apply(classifier.variables, classifier.inputs.encode(photo)[None])[0])
    assert {one["label"]: one["probability"] for one in found} == pytest.approx(
        {"cat": float(row[0]), "dog": float(row[1])}, abs=1e-4
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name the classes with --labels, as --labels cat dog"),
        (["--labels", "cat", "cat"], "labels must be one or more, each once, not 'cat', 'cat'"),
        (["--labels", "cat", "--template", "a photo"], "the template must have {} where the label goes, not 'a photo'"),
    ],
)
def test_wrong_labels_get_one_line(folder, more, message, capsys):
    assert main(["predict", str(folder), "photo.png", *more]) == 2
    assert message in capsys.readouterr().err


def test_labels_are_for_a_clip(capsys):
    assert main(["predict", "lenet5", "photo.png", "--labels", "cat"]) == 2
    assert capsys.readouterr().err == "error: labels are described to a CLIP, not to LeNet5\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act must be the same in both towers"),
        ({"vision_config": {"intermediate_size": 7}}, "intermediate_size must be 4 hidden_size, 64, not 7"),
        ({"vision_config": {"num_channels": 1}}, "num_channels must be 3, not 1"),
    ],
)
def test_configs_of_another_kind_are_refused(folder, changed, message, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changed.items():
        config[key] |= value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(zoo.ZooError, match=message):
        zoo.from_pretrained(tmp_path)
