"""Hugging Face's architectures, one file each: names and forms of tensors, and the config.json.

Each file has ARCHITECTURES (model_type to the class names of that type, the default first), LAYOUTS (the first that
names all of a model's arrays is written), `fields(config)` (the registered model and its fields), `config(model)` and
`writes(model)`.
"""

from collections.abc import Mapping
from typing import Any

from zoo.weights.huggingface import (
    bart,
    bert,
    clip,
    dinov2,
    distilbert,
    gemma,
    gpt2,
    llama,
    mpnet,
    neox,
    roberta,
    t5,
    vit,
)
from zoo.weights.huggingface.layout import TensorLayout

FAMILIES: tuple[Any, ...] = (bert, roberta, mpnet, distilbert, gpt2, llama, gemma, neox, t5, vit, dinov2, clip, bart)
LAYOUTS: tuple[TensorLayout, ...] = tuple(layout for family in FAMILIES for layout in family.LAYOUTS)
KINDS: dict[str, Any] = {kind: family for family in FAMILIES for kind in family.ARCHITECTURES}


def layout_of(variables: Mapping[str, Any], layouts: tuple[TensorLayout, ...] = LAYOUTS) -> TensorLayout | None:
    """The first of some layouts for (unstacked) variables, one that names all of them if there is one; None if there is
    none."""
    found = [layout for layout in layouts if layout.is_of(variables)]
    return next((layout for layout in found if layout.names_all(variables)), found[0] if found else None)
