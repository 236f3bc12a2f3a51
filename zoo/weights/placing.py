"""Arrays of a file as arrays on devices: each copied once, transposed and cast on the way.

On a mesh each device gets its own part of an array, and no host reads the parts of others. A host holds its parts and
what is on the way to the devices: about 64 MB, or one array.
"""

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from zoo.partition import STACKED, Rules, specs
from zoo.weights.names import Path

LINE = 64  # bytes of a cache line, and the alignment with which the CPU's devices use memory in place
ROW = 32  # bytes of a row of a block that is transposed: the fastest of 16 to 256
PIECE = 2**20  # bytes below which a copy is not worth a thread
MEMORY = 2**26  # bytes asked of the system, and given to the devices, at a time


def placed(leaves: Mapping[Path, Any], template: Any, mesh: Mesh | None = None, rules: Rules = ()) -> Any:
    """The variables of a `template` (shapes and dtypes) from `leaves` by path, cast to its dtypes.

    Layers that the template has stacked are separate leaves. On a `mesh` arrays are sharded as `rules` say, else they
    are on the default device.
    """
    wanted = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        copier = _Copier(pool)
        if mesh is None:
            found = _on_one_device(leaves, wanted, copier)
        else:
            spec = jax.tree_util.tree_leaves_with_path(specs(template, dict(mesh.shape), rules))
            shardings = {_keys(path): NamedSharding(mesh, one) for path, one in spec}
            found = {}
            for keys, leaf in wanted.items():
                parts = _parts(leaves, keys, leaf)
                read = partial(copier.read, leaf, parts)
                found[keys] = jax.make_array_from_callback(leaf.shape, shardings[keys], read)
                _release(parts)
    return jax.tree_util.tree_map_with_path(lambda path, _: found[_keys(path)], template)


def _on_one_device(leaves: Mapping[Path, Any], wanted: Mapping[Path, Any], copier: "_Copier") -> dict[Path, jax.Array]:
    found: dict[Path, jax.Array] = {}
    waiting: dict[Path, np.ndarray] = {}
    for i, (keys, leaf) in enumerate(wanted.items(), start=1):
        parts = _parts(leaves, keys, leaf)
        waiting[keys] = copier.read(leaf, parts, (slice(None),) * len(leaf.shape))
        _release(parts)
        if i == len(wanted) or sum(array.nbytes for array in waiting.values()) >= MEMORY:
            found |= jax.device_put(waiting)
            waiting = {}
    return found


def _keys(path: Any) -> Path:
    return tuple(key.key for key in path)


def _parts(leaves: Mapping[Path, Any], keys: Path, leaf: Any) -> Sequence[Any]:
    """The array of a leaf, or those of the layers that it stacks."""
    if STACKED not in keys:
        return [leaves[keys]]
    at = keys.index(STACKED)
    return [leaves[(*keys[:at], f"layer{i}", *keys[at + 1 :])] for i in range(leaf.shape[0])]


class _Copier:
    """Copies into memory that the CPU's devices can use in place: pieces of large pages, where the system has them. It
    zeroes pages of 4 kB more slowly than they are copied."""

    def __init__(self, pool: ThreadPoolExecutor):
        self.pool, self.piece, self.used = pool, np.empty(0, np.uint8), 0

    def read(self, leaf: Any, parts: Sequence[Any], index: tuple[slice, ...]) -> np.ndarray:
        """A part of a leaf from its array, or from those of the layers that it stacks."""
        shape = tuple(len(range(*one.indices(size))) for one, size in zip(index, leaf.shape, strict=True))
        target = self.empty(shape, leaf.dtype)
        if np.ndim(parts[0]) == len(shape):
            self.copy(target, parts[0][index])
        else:
            for out, part in zip(target, parts[index[0]], strict=True):
                self.copy(out, part[index[1:]])
        return target

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if self.used + size > len(self.piece):
            # Private memory: what is shared between processes has no large pages.
            memory = mmap.mmap(-1, max(size, MEMORY), access=mmap.ACCESS_COPY)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            self.piece, self.used = np.frombuffer(memory, np.uint8), 0
        found = self.piece[self.used : self.used + size].view(dtype).reshape(shape)
        self.used += -(-size // LINE) * LINE
        return found

    def copy(self, target: np.ndarray, source: Any) -> None:
        """Copies and casts. A transposed source is read in the order of its memory, in blocks with short rows in the
        target: several times as fast as element by element."""
        source = np.asarray(source)
        if target.nbytes < PIECE:
            np.copyto(target, source, casting="unsafe")
            return
        turned = source.ndim > 1 and source.strides[-1] != source.itemsize
        axis = source.ndim - 1 if turned else 0
        size, workers = target.shape[axis], self.pool._max_workers
        step = max(ROW // target.itemsize, 1) if turned else -(-size // workers)

        def run(first: int, last: int) -> None:
            for start in range(first, last, step):
                block = (*(slice(None),) * axis, slice(start, min(start + step, last)))
                part = source[block]
                if turned and part.dtype != target.dtype:
                    part = part.astype(target.dtype, order="K")  # in the order of memory, in which it is fast
                np.copyto(target[block], part, casting="unsafe")

        span = -(-size // (workers * step)) * step
        list(self.pool.map(run, range(0, size, span), [min(start + span, size) for start in range(0, size, span)]))


def _release(parts: Sequence[Any]) -> None:
    """Gives back the memory of the pages of a mapped file that have been read; the file still has them."""
    for part in parts:
        base = part
        while isinstance(base, np.ndarray | memoryview):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            continue
        origin = np.frombuffer(base, np.uint8).ctypes.data
        low, high = (bound - origin for bound in np.lib.array_utils.byte_bounds(part))
        first = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE
        if (size := high // mmap.PAGESIZE * mmap.PAGESIZE - first) > 0:
            base.madvise(mmap.MADV_DONTNEED, first, size)
