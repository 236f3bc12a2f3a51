"""Folders of timm: config.json with `architecture` and `pretrained_cfg` beside model.safetensors.

They are read where the architecture has a registered name. Names of tensors are torchvision's, or those of one of
LAYOUTS.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError
from zoo.inputs import ImageInputs
from zoo.registry import model_info
from zoo.weights.huggingface.inputs import numbered

LAYOUTS: tuple[Any, ...] = ()  # with the methods of huggingface.layout.TensorLayout


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return isinstance(config.get("architecture"), str)


def described(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any], ImageInputs | None]:
    """The registered model, its fields, and the inputs (None without mean and std). ZooError for another model."""
    about = config.get("pretrained_cfg") or config
    try:
        name, classes = config["architecture"].split(".")[0], config.get("num_classes", about.get("num_classes"))
        channels, height, width = about.get("input_size") or (3, *model_info(name).input_shape[:2])
        names = config.get("label_names") or about.get("label_names") or numbered(classes or 0)
        mean, std, labels = about.get("mean"), about.get("std"), tuple(map(str, names))
        inputs = ImageInputs((height, width, channels), mean, std, labels) if mean and std else None
        fields = {"num_classes": classes} if classes else {}
        if "image_size" in model_info(name).fields:
            fields["image_size"] = height
        return name, fields, inputs
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ZooError(f"{str(folder / 'config.json')!r}: {error!s:.160}") from None
