"""The same numbers as PyTorch: logits, layers, batch statistics, and state dicts both ways."""

import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch: pip install '.[parity]'")

import zoo  # noqa: E402
from benchmarks.peers import torch_model  # noqa: E402
from zoo.__main__ import main  # noqa: E402

pytestmark = pytest.mark.parity


def stages(pattern, places):
    return {f"stage{i}": pattern.format(place) for i, place in enumerate(places, start=1)}


CASES = {  # name: (fields, input shape, features by the torch module that makes them)
    "simple_cnn": ({"num_classes": 7, "hidden_size": 32}, (32, 24, 3), {}),
    "lenet5": ({}, (32, 32, 1), {}),
    "resnet18": ({"width": 8, "num_classes": 7}, (64, 64, 3), stages("layer{}", range(1, 5))),
    "resnet50": ({"width": 8, "stage_sizes": (1, 2, 1, 1)}, (64, 64, 3), stages("layer{}", range(1, 5))),
    "resnet8": ({}, (32, 32, 3), stages("layer{}", range(1, 4))),
    "resnet20": ({"width": 4}, (32, 32, 3), stages("layer{}", range(1, 4))),
    "wide_resnet28_10": ({"width": 8, "stage_sizes": (1, 2, 2)}, (32, 32, 3), stages("layer{}", range(1, 4))),
    "airbench": ({"widths": (8, 12, 16), "num_classes": 7}, (32, 32, 3), stages("layer{}", range(1, 4))),
    "alexnet": ({"hidden_size": 16, "dropout_rate": 0.0}, (95, 120, 3), stages("features.{}", (1, 4, 11, 12))),
    "vgg11": ({"hidden_size": 16, "dropout_rate": 0.0}, (64, 80, 3), stages("features.{}", (9, 14, 19, 20))),
    "vgg13_bn": ({"hidden_size": 16, "dropout_rate": 0.0}, (64, 64, 3), stages("features.{}", (19, 26, 33, 34))),
    "densenet121": (
        {"stage_sizes": (2, 3, 2, 2), "growth_width": 8, "width": 16},
        (64, 64, 3),
        stages("features.denseblock{}", range(1, 4)),
    ),
    "mobilenet_v2": ({"dropout_rate": 0.0, "multiplier": 0.4}, (64, 64, 3), stages("features.{}", (3, 6, 13, 17))),
    "mobilenet_v3_small": ({"dropout_rate": 0.0}, (64, 64, 3), stages("features.{}", (1, 3, 8, 11))),
    "mobilenet_v3_large": ({"dropout_rate": 0.0, "num_classes": 7}, (64, 64, 3), {}),
    "efficientnet_b0": (
        {"dropout_rate": 0.0, "drop_path_rate": 0.0},
        (64, 64, 3),
        stages("features.{}", (2, 3, 5, 7)),
    ),
    "efficientnet_lite0": ({"dropout_rate": 0.0, "drop_path_rate": 0.0, "num_classes": 7}, (64, 64, 3), {}),
    "convnext_tiny": (
        {"stage_sizes": (1, 2, 2, 1), "width": 16, "drop_path_rate": 0.0},
        (64, 64, 3),
        stages("features.{}", (1, 3, 5, 7)),
    ),
    "unet": ({"widths": (4, 8, 12), "dropout_rate": 0.0}, (52, 60, 1), {}),
    "unet_small": ({"widths": (4, 8, 12), "num_classes": 3}, (37, 42, 3), {}),
    "deeplabv3_resnet50": (
        {"stage_sizes": (1, 1, 2, 2), "dropout_rate": 0.0, "num_classes": 5, "auxiliary": True},
        (65, 80, 3),
        {f"stage{i}": f"backbone.layer{i}" for i in (3, 4)},
    ),
    "fcn_resnet50": ({"stage_sizes": (1, 1, 2, 2), "dropout_rate": 0.0}, (65, 80, 3), {}),
}


def assert_close(ours, theirs, what=""):
    """max|a - b| <= 1e-4 max|b|: two orders of summation of the same float32 arithmetic."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), what


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """The peer with weights and statistics drawn so that activations stay of order one, ours with the same, images."""
    name = request.param
    fields, shape, features = CASES[name]
    torch.manual_seed(0)
    peer = torch_model(name, shape, **fields).eval()
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            if module.weight is not None:
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.3)
        elif hasattr(module, "layer_scale"):
            torch.nn.init.uniform_(module.layer_scale, 0.5, 1.0)
    torch.save(peer.state_dict(), tmp_path / "model.pth")
    assert main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "model.safetensors")]) == 0
    model = zoo.create_model(name, **fields)
    variables = zoo.load_weights(model, tmp_path / "model.safetensors", shape)
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    return name, peer, model, variables, images, features


def to_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_every_architecture_has_a_case():
    classes = {zoo.model_info(name).module_class for name in CASES}
    every = {zoo.model_info(name).module_class for name in zoo.list_models(family="cnn")}
    assert classes == {cls for cls in every if not getattr(cls, "detects", False)}  # of which test_detection is


def test_logits_and_layers_agree(case):
    name, peer, model, variables, images, features = case
    seen = {}
    for ours, theirs in features.items():
        peer.get_submodule(theirs).register_forward_hook(lambda _, __, out, key=ours: seen.update({key: out}))
    expected = peer(to_torch(images))
    assert 0.01 < expected.abs().max() < 1000
    logits, changed = model.apply(variables, images, mutable=["features"])
    for key, theirs in seen.items():
        assert_close(changed["features"][key], theirs, f"{name} {key}")
    assert_close(logits, expected, name)


def test_training_mode_agrees_with_batch_statistics(case):
    _, peer, model, variables, images, _ = case
    logits, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    peer.train()
    rows = {}  # values a channel that each norm saw, n
    for key, module in peer.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            kept = (1 - module.momentum) * module.running_var.numpy()  # of the old average
            module.register_forward_hook(
                lambda _, inputs, __, key=key, kept=kept: rows.update(
                    {key: (inputs[0].numel() / inputs[0].shape[1], kept)}
                )
            )
    assert_close(logits, peer(to_torch(images)))
    names = zoo.weights.torchvision.names({"batch_stats": changed.get("batch_stats", {})})
    assert len(names) == 2 * len(rows)
    state = peer.state_dict()
    for key, (n, kept) in rows.items():
        assert_close(names[f"{key}.running_mean"][1], state[f"{key}.running_mean"])
        # Flax adds a part of the batch's biased variance to what it keeps of the old one, torch n / (n - 1) times that.
        unbiased = kept + (np.asarray(names[f"{key}.running_var"][1]) - kept) * n / (n - 1)
        assert_close(unbiased, state[f"{key}.running_var"])


def test_our_weights_load_into_torch(case, tmp_path):
    name, peer, model, variables, images, _ = case
    fields, shape, _ = CASES[name]
    zoo.save_weights(variables, tmp_path / "ours.safetensors")
    arrays = zoo.weights.read_safetensors(tmp_path / "ours.safetensors")
    state = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
    again = torch_model(name, shape, **fields).eval()
    again.load_state_dict(state, strict=True)
    assert torch.equal(again(to_torch(images)), peer(to_torch(images)))
    assert jax.tree.structure(variables) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0), images))


def test_full_size_resnet18_agrees(tmp_path):
    torch.manual_seed(0)
    peer = torch_model("resnet18").eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in peer.state_dict().items()}}, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    variables = zoo.load_weights("resnet18", tmp_path / "a.safetensors")
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    assert_close(zoo.create_model("resnet18").apply(variables, images), peer(to_torch(images)))


def test_zoo_itself_never_imports_torch():
    code = "import sys, zoo, zoo.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
