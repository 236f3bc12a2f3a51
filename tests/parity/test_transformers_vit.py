"""The ViT of Hugging Face's transformers: weights in and out, logits and hidden states to 1e-5 of the largest value."""

import jax
import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo

pytestmark = pytest.mark.parity

SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 24, "patch_size": 8, "num_labels": 5},
}
CONFIGS = {
    "gelu": {},
    "tanh": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
    "new": {"hidden_act": "gelu_new", "image_size": 16, "patch_size": 4},
    "relu": {"hidden_act": "relu", "num_labels": 2, "image_size": [24, 24]},
}
IMAGES = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)


def peer(name="gelu", kind="ViTForImageClassification", **options):
    """A model of transformers with weights that are not small, and scales around 1."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.ViTConfig(**{**SMALL, **CONFIGS[name]}), **options)
    return drawn(model)


def compare(model, variables, other, **options):
    """Logits, where theirs has any, and every hidden state."""
    images = IMAGES[:, : model.image_size, : model.image_size]
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        theirs = other(pixels, output_hidden_states=True, **options)
    logits, seen = model.apply(variables, images, mutable=["features"])
    features = seen["features"]
    hidden = [features["embedded"], *(features["layers"][f"layer{i}"]["hidden"] for i in range(model.num_layers))]
    for ours, expected in zip(hidden, theirs.hidden_states, strict=True):
        close(ours, expected)
    if "logits" in theirs:
        close(logits, theirs.logits)
    else:
        close(features["normalised"], theirs.last_hidden_state)  # logits are of a head that was drawn


def same_state(other, back):
    """All but the pooler, which ours do not have."""
    kept = {key: tensor for key, tensor in other.state_dict().items() if not key.startswith("pooler")}
    states = kept, back.state_dict()
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_theirs_to_ours_and_back(name, scan_layers, tmp_path):
    other = peer(name)
    model, _ = there_and_back(
        other, transformers.AutoModelForImageClassification, compare, tmp_path, scan_layers=scan_layers
    )
    assert model.num_classes == other.config.num_labels


@pytest.mark.parametrize("pooler", [False, True])
def test_the_body_alone_gets_a_head(pooler, tmp_path):
    other = peer(kind="ViTModel", add_pooling_layer=pooler)
    other.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="no head for this number of classes; the head 'head' \\(5\\) is drawn"):
        model, variables = zoo.from_pretrained(tmp_path / "theirs")
    compare(model, variables, other)
    zoo.save_pretrained(model, variables, tmp_path / "ours")
    body = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    compare(model, variables, body)
    same_state(other, body)


@pytest.mark.parametrize("image_size", [16, 40])
def test_another_image_size(image_size, tmp_path):
    other = peer()
    other.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="positions of 3 x 3 patches are resized"):
        model, variables = zoo.from_pretrained(tmp_path, image_size=image_size)
    compare(model, variables, other, interpolate_pos_encoding=True)


def test_shards_and_half_precision(tmp_path):
    other = peer().to(torch.bfloat16)
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, variables = zoo.from_pretrained(tmp_path)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    compare(model, variables, other.float())
