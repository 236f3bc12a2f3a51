"""Hugging Face's architectures, one file each: names and forms of tensors, and the config.json.

Each file has ARCHITECTURES (model_type to the class names of that type, the default first), LAYOUT, `fields(config)`
(the registered model and its fields), `config(model)` and `writes(model)`.
"""

from collections.abc import Mapping
from typing import Any

from zoo.weights.huggingface import bert, gpt2, llama, t5, vit
from zoo.weights.huggingface.layout import TensorLayout

FAMILIES: tuple[Any, ...] = (bert, gpt2, llama, t5, vit)
LAYOUTS = (bert.LAYOUT, gpt2.LAYOUT, llama.LAYOUT, t5.GATED, t5.LAYOUT, vit.LAYOUT)  # the more specific ones first
KINDS: dict[str, Any] = {kind: family for family in FAMILIES for kind in family.ARCHITECTURES}


def layout_of(variables: Mapping[str, Any]) -> TensorLayout | None:
    """Hugging Face's layout for (unstacked) variables; None if there is none."""
    return next((layout for layout in LAYOUTS if layout.is_of(variables)), None)
