"""State dicts of torch.nn.LSTM, GRU and RNN, alone or inside a module.

`params/layers/layer0_reverse/kernel` is `layers.weight_ih_l0_reverse`. Gates have the same order; kernels are
transposed. PyTorch's two biases are summed into our one, which is saved as that sum and zeros; a GRU's candidate keeps
both, since its reset gate multiplies one of them. A projection (`proj_size`) is `weight_hr_l0`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoo.weights.names import by_name, is_counter, without_prefix

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TRANSPOSED = ("kernel", "recurrent_kernel", "projection")
_LAYER = re.compile(r"layer(\d+)(_reverse)?")
_CELL_LEAF = {
    "kernel": "weight_ih",
    "recurrent_kernel": "weight_hh",
    "bias": "bias_hh",  # after `merged`: the sum of both
    "projection": "weight_hr",
    "candidate_bias": "bias_ih",  # after `merged`: the candidate's part
}


def is_recurrent(tensors: Mapping[str, Any]) -> bool:
    return any(re.search(r"(^|\.)weight_ih_l\d+", name) for name in tensors)


def ignored(name: str) -> bool:
    """Whether a tensor of the file has no place in a model: torch's step counters."""
    return is_counter(name)


def matches(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> int:
    """How many tensors of a file have a place in the model."""
    return len(names(variables).keys() & without_prefix(tensors, names(variables).__contains__).keys())


def prepared(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of a file with the names and in the number of `names`."""
    return merged(without_prefix(tensors, names(variables).__contains__))


def merged(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with one bias per gate, as our layers have it."""
    found = dict(tensors)
    for name in tensors:
        other = name.replace("bias_hh_l", "bias_ih_l")
        kernel = name.replace("bias_hh_l", "weight_hh_l")
        if name == other or other not in tensors or kernel not in tensors:
            continue
        ours, theirs = (np.asarray(tensors[key], np.float64) for key in (name, other))
        rows, size = tensors[kernel].shape
        if ours.shape != theirs.shape or ours.shape != (rows,):
            continue  # wrong shapes are reported where shapes are compared
        if rows == 3 * size:  # a GRU
            found[other] = theirs[2 * size :]
            theirs = np.concatenate([theirs[: 2 * size], np.zeros(size)])
        else:
            del found[other]
        found[name] = ours + theirs
    return found


def names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every leaf by its name in the state dict, with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    return by_name((_name(path), (path, leaf)) for path, leaf in paths)


def from_file(tensor: np.ndarray, leaf: Any, path: tuple[str, ...]) -> np.ndarray:
    """A view of the tensor in our layout; ValueError (actual and expected) if it does not fit."""
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise ValueError(f"{tensor.dtype}, not floating point")
    expected = leaf.shape[::-1] if path[-1] in _TRANSPOSED else leaf.shape
    if tensor.shape != expected:
        raise ValueError(f"{tensor.shape}, not {expected}")
    return tensor.T if path[-1] in _TRANSPOSED else tensor


def file_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf in the file; only kernels of two axes are turned."""
    return leaf.shape[::-1] if len(leaf.shape) == 2 else leaf.shape


def differs_in_classes(tensor: np.ndarray, leaf: Any) -> bool:
    """Whether a head's tensor differs from our leaf only in the number of classes."""
    return tensor.shape[1:] == leaf.shape[:-1]


def to_file(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of variables, with a second bias in every layer."""
    tensors = {}
    for name, (path, leaf) in names(variables).items():
        array = np.asarray(leaf)
        tensors[name] = array.T if path[-1] in _TRANSPOSED else array
    for name in [name for name in tensors if "bias_hh_l" in name]:
        other = name.replace("bias_hh_l", "bias_ih_l")
        second = np.zeros_like(tensors[name])
        if other in tensors:
            second[-len(tensors[other]) :] = tensors[other]
        tensors[other] = second
    return tensors


def _name(path: tuple[str, ...]) -> str:
    modules, leaf = list(path[1:-1]), path[-1]
    layer = _LAYER.fullmatch(modules[-1]) if modules else None
    if layer and leaf in _CELL_LEAF:
        return ".".join([*modules[:-1], f"{_CELL_LEAF[leaf]}_l{layer[1]}{layer[2] or ''}"])
    if not modules:  # parameters of tied language models
        return {"head_bias": "head.bias", "embedding": "embedding.weight"}.get(leaf, leaf)
    return ".".join([*modules, _LEAF.get(leaf, leaf)])
