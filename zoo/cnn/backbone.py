"""The part of a classifier that detectors and segmenters build on: its stages, without pooling and head."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from zoo.errors import ZooError
from zoo.features import take
from zoo.registry import create_model


def backbone_stages(
    parent: nn.Module,
    name: str,
    args: Mapping[str, Any],
    stages: Sequence[str],
    x: jax.Array,
    train: bool,
    module: str = "body",
) -> list[jax.Array]:
    """The features `stages` of the registered model `name` with fields `args`, a submodule `module` of `parent`, whose
    dtypes and mapped axis it gets.

    Images [B, H, W, C] to a map [B, H / stride, W / stride, channels] each. ZooError for a model without these
    features.
    """
    shared = {field: getattr(parent, field) for field in ("dtype", "param_dtype", "axis_name")}
    model = create_model(name, **{**args, "num_classes": None})
    given = {field: value for field, value in shared.items() if hasattr(model, field)}
    backbone = model.clone(name=module, parent=parent, **given)
    maps = take(backbone, stages, x, train=train)
    if any(found.ndim != 4 for found in maps):
        raise ZooError(f"{name}: the features {', '.join(stages)} must be maps [batch, height, width, channels]")
    return maps
