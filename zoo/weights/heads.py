"""Heads in files that a model without classes does not read."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.errors import ZooError


def unread_head(module: nn.Module, layout: Any) -> set[str]:
    """The names, in a layout, of the tensors of the head that a module with `num_classes=None` lacks."""
    if getattr(module, "num_classes", "other") is not None or not hasattr(module, "head"):
        return set()
    leaf = jax.ShapeDtypeStruct((1, 1), np.float32)
    try:
        return set(layout.names({"params": {module.head: {"kernel": leaf, "bias": leaf}}}))
    except ZooError:  # a layout of bodies
        return set()
