"""CLIP of transformers, both ways: vectors of images and texts, their scores, hidden states, and its processor."""

import json

import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo
from zoo.__main__ import main

pytestmark = pytest.mark.parity
SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTHS = np.array([6, 3], np.int32)
V = 40


def peer(**fields):
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": V, "max_position_embeddings": 9, "eos_token_id": V - 1, **fields}
    image = {**SIZES, "hidden_size": 24, "intermediate_size": 96, "image_size": 16, "patch_size": 8, **fields}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=10)
    return drawn(transformers.CLIPModel(config))


def compare(model, variables, other):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    texts = rng.integers(0, V - 1, (2, 6)).astype(np.int32)
    texts[np.arange(2), LENGTHS - 1] = V - 1
    mask = (np.arange(6) < LENGTHS[:, None]).astype(np.int64)
    with torch.no_grad():
        theirs = other(
            input_ids=torch.from_numpy(texts).long(),
            attention_mask=torch.from_numpy(mask),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2)),
            output_hidden_states=True,
        )
    scores, seen = model.apply(variables, images, texts, LENGTHS, mutable=["features"])
    close(scores, theirs.logits_per_image)
    close(model.apply(variables, images, method="encode_image"), theirs.image_embeds)
    close(model.apply(variables, texts, LENGTHS, method="encode_text"), theirs.text_embeds)
    features = seen["features"]
    for i in range(2):
        close(features["image"]["layers"][f"layer{i}"]["hidden"], theirs.vision_model_output.hidden_states[i + 1])
        ours = np.asarray(features["text"]["layers"][f"layer{i}"]["hidden"])
        close(ours[mask == 1], theirs.text_model_output.hidden_states[i + 1][torch.from_numpy(mask == 1)])


@pytest.mark.parametrize("fields", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-6}])
def test_theirs_to_ours_and_back(fields, tmp_path):
    there_and_back(peer(**fields), transformers.CLIPModel, compare, tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("clip_vit_base32", 151_277_313), ("clip_vit_base16", 149_620_737), ("clip_vit_large14", 427_616_513)],
)
def test_published_parameter_counts(name, parameters):
    assert zoo.model_info(name).parameters == parameters


def test_a_photo_gets_the_classes_that_the_pipeline_gives_it(tmp_path, capsys):
    letters = [*"abcdefghijklmnoprst.", *(f"{letter}</w>" for letter in "abcdefghijklmnoprst.")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    config = peer().config
    config.text_config.vocab_size, config.text_config.eos_token_id = len(vocabulary), len(vocabulary) - 1
    config.text_config.max_position_embeddings = 40
    torch.manual_seed(0)
    other = drawn(transformers.CLIPModel(config))
    for part in (other, tokenizer, processor):
        part.save_pretrained(tmp_path / "clip")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((36, 30), Image.Resampling.BICUBIC).save(photo)
    pipeline = transformers.pipeline(
        "zero-shot-image-classification", model=other, tokenizer=tokenizer, image_processor=processor
    )
    labels = ["cat", "dog", "a red bird"]
    expected = pipeline(str(photo), candidate_labels=labels, hypothesis_template="a photo of a {}.")
    command = ["predict", str(tmp_path / "clip"), str(photo), "--json", "--labels", *labels]
    assert not main(command)
    found = json.loads(capsys.readouterr().out)["labels"]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    np.testing.assert_allclose([one["probability"] for one in found], [one["score"] for one in expected], atol=1e-3)
