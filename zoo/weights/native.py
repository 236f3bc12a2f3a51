"""Our own layout: one tensor per leaf, named by its path, `params/conv1/kernel`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoo.weights.names import by_name


def is_native(tensors: Mapping[str, Any]) -> bool:
    return any(name.startswith("params/") for name in tensors)


def ignored(name: str) -> bool:
    return False


def prepared(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    return tensors


def names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every leaf by its name in the file, with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    return by_name(("/".join(path), (path, leaf)) for path, leaf in paths)


def from_file(tensor: np.ndarray, leaf: Any, path: tuple[str, ...]) -> np.ndarray:
    """The tensor unchanged; ValueError if shape or dtype differ."""
    if tensor.shape != leaf.shape:
        raise ValueError(f"{tensor.shape}, not {leaf.shape}")
    if tensor.dtype != leaf.dtype:
        raise ValueError(f"{tensor.dtype}, not {leaf.dtype}")
    return tensor


def file_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf in the file."""
    return leaf.shape


def differs_in_classes(tensor: np.ndarray, leaf: Any) -> bool:
    """Whether a head's tensor differs from our leaf only in the number of classes."""
    return tensor.shape[:-1] == leaf.shape[:-1] and tensor.dtype == leaf.dtype


def to_file(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, (_, leaf) in names(variables).items()}
