"""timm's ConvNeXt: `stages.0.blocks.0.conv_dw.weight` for torchvision's `features.1.0.block.0.weight`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.weights import torchvision
from zoo.weights.names import without_prefix
from zoo.weights.torchvision import differs_in_classes, file_shape, from_file, ignored

__all__ = ["differs_in_classes", "file_shape", "from_file", "ignored", "is_of", "matches", "names", "prepared"]

_BLOCK = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2", "layer_scale": "gamma"}
_FIXED = {"features.0.0": "stem.0", "features.0.1": "stem.1", "classifier.0": "head.norm", "classifier.2": "head.fc"}
_NAME = re.compile(r"features\.(\d+)\.(\d+)(?:\.(block\.\d|layer_scale))?(\.\w+)?")


def is_of(variables: Mapping[str, Any]) -> bool:
    """Whether (unstacked) variables are a ConvNeXt's."""
    return "layer_scale" in variables["params"].get("features_1_0", {})


def names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every leaf by its name in the state dict, with its path."""
    return {_renamed(name): found for name, found in torchvision.names(variables).items()}


def matches(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> int:
    """How many tensors of a file have a place in the model."""
    known = names(variables)
    return len(known.keys() & without_prefix(tensors, known.__contains__).keys())


def prepared(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of a file with the names of `names`; scales of channels [C] as torchvision has them, [C, 1, 1]."""
    found = without_prefix(tensors, names(variables).__contains__)
    return {name: x.reshape(-1, 1, 1) if name.endswith(".gamma") else x for name, x in found.items()}


def _renamed(name: str) -> str:
    """timm's name for one of torchvision's."""
    module, _, leaf = name.rpartition(".")
    if module in _FIXED:
        return f"{_FIXED[module]}.{leaf}"
    found = _NAME.fullmatch(name)
    assert found is not None, name
    place, number, part, ending = found.groups()
    stage = (int(place) - 1) // 2
    if part is None:
        return f"stages.{int(place) // 2}.downsample.{number}{ending}"
    return f"stages.{stage}.blocks.{number}.{_BLOCK[part]}{ending or ''}"


ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    f"convnext_{size}": (f"convnext_{size}", {}) for size in ("tiny", "small", "base")
}
