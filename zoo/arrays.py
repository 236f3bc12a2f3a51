"""Trees of arrays: leaves by path, copies in host memory, digests."""

import hashlib
from typing import Any

import jax
import numpy as np

# Abstract inputs of a model: positional and keyword arguments.
Example = tuple[tuple[jax.ShapeDtypeStruct, ...], dict[str, jax.ShapeDtypeStruct]]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path: `params/conv1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def host_array(leaf: Any) -> np.ndarray:
    """A copy in this process's memory. An array that spans processes is all-gathered: every process must call this."""
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return np.array(leaf)
    if leaf.is_fully_replicated:
        return np.array(leaf.addressable_data(0))
    if not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    array = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:  # np.array(leaf) would cache a full copy on the leaf
        array[shard.index] = shard.data
    return array


def digests(tree: Any) -> dict[str, str]:
    """A SHA-256 of dtype, shape and bytes of every array, by path. One array at a time is copied to host memory."""
    return {name: digest_of(host_array(leaf)) for name, leaf in named_leaves(tree).items()}


def digest_of(array: np.ndarray) -> str:
    """A SHA-256 of an array's dtype, shape and bytes. Contiguous arrays are not copied."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]
