"""Weights as a program takes them: arrays by name, in float32, bfloat16 or int8.

int8 is symmetric and per output channel: w = q * scale with q from -127 to 127 and scale = max |w| / 127 over the
channel, so that a weight is wrong by at most scale / 2. It is for kernels, whose channels are the last axis, and for
tables of embeddings, whose channels are the rows. The program multiplies them out.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from zoo.arrays import named_leaves

WeightsDtype = Literal["float32", "bfloat16", "int8"]
SCALE = ".scale"  # the ending of the name of an int8 array's scales
Arrays = dict[str, np.ndarray]


class Stored(NamedTuple):
    """Arrays by name, and the function that makes the model's variables of them, also inside jit."""

    arrays: Arrays
    restore: Callable[[Mapping[str, Any]], Any]


def store(variables: Any, dtype: WeightsDtype = "float32") -> Stored:
    """Variables to arrays by path, `params/conv1/kernel`. Leaves that are no floats keep their dtype, and with
    "float32" every leaf does; restored leaves have the dtypes of the variables."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(variables).items()}
    tree = jax.tree.structure(variables)
    dtypes = {name: leaf.dtype for name, leaf in leaves.items()}
    arrays: Arrays = {}
    for name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or dtype == "float32":
            arrays[name] = leaf
        elif dtype == "int8" and (axes := _within_channel(name, leaf)):
            arrays[name], arrays[name + SCALE] = quantized(leaf, axes)
        elif dtype == "bfloat16" and leaf.ndim > 1:
            arrays[name] = leaf.astype(ml_dtypes.bfloat16)
        else:
            arrays[name] = leaf

    def restore(arrays: Mapping[str, Any]) -> Any:
        found = []
        for name, kind in dtypes.items():
            value = jnp.asarray(arrays[name])  # so that under jit the program multiplies, and its constant stays small
            if name + SCALE in arrays:
                value = value.astype(jnp.float32) * arrays[name + SCALE]
            found.append(value.astype(kind))
        return jax.tree.unflatten(tree, found)

    return Stored(arrays, restore)


def quantized(leaf: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An array as int8 and float32 scales that broadcast to it; `axes` are those within a channel."""
    values = leaf.astype(np.float32)
    scale = np.max(np.abs(values), axis=axes, keepdims=True) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(values / scale).astype(np.int8), scale


def _within_channel(name: str, leaf: np.ndarray) -> tuple[int, ...]:
    """The axes within an output channel of a kernel, or within a row of a table; none for another array."""
    last = name.rsplit("/", 1)[-1]
    if leaf.ndim < 2:
        return ()
    if last.endswith("kernel"):
        return tuple(range(leaf.ndim - 1)) if leaf.ndim != 3 else (1,)  # of 3 axes, the first is that of equal layers
    return (leaf.ndim - 1,) if last == "embedding" else ()
