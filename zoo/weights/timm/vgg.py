"""timm's VGG: torchvision's, but for the dense layers, which are convolutions there."""

from collections.abc import Mapping
from typing import Any

from zoo.weights.timm.renamed import Renamed

_DENSE = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}


def _all(names: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    modules = {name: name.rpartition(".") for name in names}
    return {name: f"{_DENSE.get(module, module)}.{leaf}" for name, (module, _, leaf) in modules.items()}


LAYOUTS = (Renamed("features.0.weight", _all),)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    f"vgg{depth}{suffix}": (f"vgg{depth}{suffix}", {}) for depth in (11, 13, 16, 19) for suffix in ("", "_bn")
}
