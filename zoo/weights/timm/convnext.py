"""timm's ConvNeXt: `stages.0.blocks.0.conv_dw.weight` for torchvision's `features.1.0.block.0.weight`."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.weights.timm.renamed import Renamed

_BLOCK = {
    **{"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "grn": "mlp.grn", "block.5": "mlp.fc2"},
    "layer_scale": "gamma",
}
_FIXED = {"features.0.0": "stem.0", "features.0.1": "stem.1", "classifier.0": "head.norm", "classifier.2": "head.fc"}
_NAME = re.compile(r"features\.(\d+)\.(\d+)(?:\.(block\.\d|grn|layer_scale))?(\.\w+)?")


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


def _all(names: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    return {name: _renamed(name) for name in names}


LAYOUTS = (Renamed("features.1.0.block.5.weight", _all),)
_SIZES = {
    "convnext": ("tiny", "small", "base", "large"),
    "convnextv2": ("atto", "femto", "pico", "nano", "tiny", "base"),
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}_{size}": (f"{kind}_{size}", {}) for kind, sizes in _SIZES.items() for size in sizes
}
