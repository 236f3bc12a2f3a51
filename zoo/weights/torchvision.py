"""State dicts of torchvision.

Our modules have torchvision's names with `_0` for `.0`, so that a path is a name: `params/layer1_0/conv1/kernel` is
`layer1.0.conv1.weight`. Kernels [h, w, in, out] are [out, in, h, w] there; the kernel of a dense layer over a map, [h,
w, c, out], is [out, c h w]: the same transposition and a reshape.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoo.weights.names import by_name, is_counter, without_prefix

_LEAF = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_DENSE = ("fc", "classifier", "head")  # top-level modules that are dense layers
_DENSE_BEHIND = ("box_head",)  # those behind a backbone, where the others are convolutions
# Where torchvision nests the modules of detectors, which are at the top here.
_NESTED = (
    (r"^rpn_head\.", "rpn.head."),
    (r"^(box_head|box_predictor)\.", r"roi_heads.\1."),
    (r"^(classification_head|regression_head)\.", r"head.\1."),
    (r"^cls_logits\.", "head.classification_head.cls_logits."),
    (r"^bbox_reg\.", "head.regression_head.bbox_reg."),
    (r"^backbone\.fpn_extra_blocks_", "backbone.fpn.extra_blocks."),
    (r"^backbone\.fpn_", "backbone.fpn."),
    (r"^backbone\.body\.features\.", "backbone.body."),
)


def ignored(name: str) -> bool:
    """Whether a tensor of the file has no place in a model: torch's step counters."""
    return is_counter(name)


def matches(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> int:
    """How many tensors of a file have a place in the model."""
    return len(names(variables).keys() & prepared(tensors, variables).keys())


def prepared(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of a file with the names of `names`."""
    return without_prefix(tensors, names(variables).__contains__)


def names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every leaf by its name in the state dict, with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    return by_name((_name(path), (path, leaf)) for path, leaf in paths)


def from_file(tensor: np.ndarray, leaf: Any, path: tuple[str, ...]) -> np.ndarray:
    """A view of the tensor in our layout; ValueError (actual and expected) if it does not fit."""
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise ValueError(f"{tensor.dtype}, not floating point")
    expected = file_shape(leaf)
    if len(leaf.shape) == 4 and tensor.ndim == 2:
        expected = (expected[0], expected[1] * expected[2] * expected[3])
    if tensor.shape != expected:
        raise ValueError(f"{tensor.shape}, not {expected}")
    if tensor.ndim == 2 and len(leaf.shape) == 4:
        tensor = tensor.reshape(file_shape(leaf))
    return np.transpose(tensor, _TO_OURS[tensor.ndim])


def differs_in_classes(tensor: np.ndarray, leaf: Any) -> bool:
    """Whether a head's tensor differs from our leaf only in the number of classes."""
    return tensor.shape[1:] == file_shape(leaf)[1:]


def to_file(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of variables."""
    dense = _DENSE_BEHIND if "backbone" in variables["params"] else _DENSE
    tensors = {}
    for name, (path, leaf) in names(variables).items():
        tensor = np.transpose(np.asarray(leaf), _TO_TORCH[leaf.ndim])
        if leaf.ndim == 4 and path[1].startswith(dense):
            tensor = tensor.reshape(len(tensor), -1)
        tensors[name] = tensor
    return tensors


_TO_TORCH = {0: (), 1: (0,), 2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}
_TO_OURS = {0: (), 1: (0,), 2: (1, 0), 3: (1, 2, 0), 4: (2, 3, 1, 0)}


def file_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf in the file."""
    return tuple(leaf.shape[axis] for axis in _TO_TORCH[len(leaf.shape)])


def _name(path: tuple[str, ...]) -> str:
    modules = [re.sub(r"_(\d+)", r".\1", module) for module in path[1:-1]]
    name = ".".join([*modules, _LEAF.get(path[-1], path[-1])])
    for pattern, place in _NESTED:
        name = re.sub(pattern, place, name)
    return name
