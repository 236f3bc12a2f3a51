"""Folders of timm: config.json with `architecture` and `pretrained_cfg` beside model.safetensors.

They are read where the architecture is a registered name, or one of ARCHITECTURES. Names of tensors are torchvision's,
or those of one of LAYOUTS. Images have the size and the crop with which timm's own figures are measured.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError, unknown
from zoo.inputs import ImageInputs
from zoo.registry import list_models, model_info
from zoo.transformer.layers import unstacked
from zoo.weights import torchvision
from zoo.weights.huggingface.inputs import numbered
from zoo.weights.timm import convnext, mobile, vgg, vit

_FAMILIES: tuple[Any, ...] = (vit, convnext, vgg, mobile)
LAYOUTS: tuple[Any, ...] = tuple(layout for family in _FAMILIES for layout in family.LAYOUTS)
ARCHITECTURES = {  # timm's name: the registered one, and fields
    name: row for family in _FAMILIES for name, row in family.ARCHITECTURES.items()
}
_WRITTEN: tuple[Any, ...] = (convnext, mobile)
_CONVOLVED = (  # their dense layers are 1x1 convolutions
    *("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano"),
    "mobilenetv3",
)
_SAME = ("resnet", "resnext", "wide_resnet50", "wide_resnet101", "densenet")  # names that are ours too


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return isinstance(config.get("architecture"), str)


def described(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any], ImageInputs | None]:
    """The registered model, its fields, and the inputs (None without mean and std). ZooError for another model."""
    try:
        about = {**config, **(config.get("pretrained_cfg") or {})}
        name, fields = _model(config["architecture"].split(".")[0])
        if config.get("model_args"):
            raise ZooError(f"model_args {', '.join(config['model_args'])} are not known")
        classes = config.get("num_classes", about.get("num_classes"))
        size = about.get("test_input_size") or about.get("input_size") or (3, *model_info(name).input_shape[:2])
        crop = about.get("test_crop_pct") or about.get("crop_pct") or 0.875
        if "image_size" in fields:
            size, crop = about.get("input_size") or size, about.get("crop_pct") or crop
            fields = {**fields, "image_size": size[1]}
        if (about.get("crop_mode") or "center") not in ("center", "squash"):
            raise ZooError(f"crop_mode must be center or squash, not {about['crop_mode']!r}")
        names = config.get("label_names") or about.get("label_names") or numbered(classes or 0)
        mean, std = about.get("mean"), about.get("std")
        inputs = None
        if mean and std:
            inputs = ImageInputs(
                (size[1], size[2], size[0]),
                mean,
                std,
                tuple(map(str, names)),
                crop=crop,
                interpolation=about.get("interpolation", "bicubic"),
                squash=about.get("crop_mode") == "squash",
            )
        return name, {**fields, "num_classes": classes or None}, inputs
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ZooError(f"{str(folder / 'config.json')!r}: {error!s:.160}") from None


def described_as(model: Any, inputs: ImageInputs) -> dict[str, Any] | None:
    """timm's config.json of a model whose weights have timm's form as `to_file` writes them; None for another model."""
    known = {name: (name, {}) for name in list_models() if name.startswith(_SAME)} | {
        name: row for family in _WRITTEN for name, row in family.ARCHITECTURES.items()
    }
    for architecture, (name, fields) in known.items():
        if model_info(name).module_class is type(model) and not architecture.startswith(_CONVOLVED):
            other = model_info(name).constructor(**fields)
            free = ("num_classes", "dtype", "param_dtype", "dropout_rate", "drop_path_rate", "axis_name")
            if all(getattr(model, key) == getattr(other, key) for key in model_info(name).fields if key not in free):
                height, width, channels = inputs.shape
                about: dict[str, Any] = {
                    "input_size": [channels, height, width],
                    "mean": inputs.mean,
                    "std": inputs.std,
                }
                about |= {"crop_pct": inputs.crop or 1.0, "interpolation": inputs.interpolation}
                return {
                    "architecture": architecture,
                    "num_classes": model.num_classes or 0,
                    "pretrained_cfg": about | {"crop_mode": "squash" if inputs.squash else "center"},
                    **({"label_names": list(inputs.labels)} if inputs.labels else {}),
                }
    return None


def to_file(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a model that `described_as` describes."""
    plain = unstacked(variables)
    layout = next((layout for family in _WRITTEN for layout in family.LAYOUTS if layout.is_of(plain)), torchvision)
    return layout.to_file(plain)


def _model(architecture: str) -> tuple[str, dict[str, Any]]:
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    known = [name for name in list_models() if name.startswith(_SAME)]
    if architecture not in list_models():
        raise unknown("architecture", architecture, [*ARCHITECTURES, *known])
    return architecture, {}
