"""Batch k as a pure function of the seed and k, whatever the layout; and evaluation, each example once."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zoo.inputs.text import width_for

Arrays = dict[str, np.ndarray]

POOL = 64  # batches whose texts are sorted by length together
WIDTHS = {"source_length": ("source",), "length": ("tokens", "target")}  # the arrays that are as wide as their lengths


class Batches:
    """The training batches of a split of examples.

    Epochs are the split's `order`, mostly a permutation, drawn from (seed, epoch) and put end to end; batch k is the
    k-th piece of `batch_size`. A process reads its `rows` of it, by default all. Besides the examples a batch has `row`
    int32 [B], the place in the global batch, and `weight` float32 [B], ones, or the examples' own.

    Texts are batched with others of about their length: `POOL` batches are drawn at a time, sorted, cut and put in
    random order. A batch is as wide as its longest text, rounded up to one of a few widths, so that few programs are
    compiled.
    """

    def __init__(self, split: Any, batch_size: int, seed: int, rows: np.ndarray | None = None):
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rows = np.arange(batch_size) if rows is None else rows
        self.lengths = split.lengths
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""
        indices = self._indices(k, self.rows)
        weight = np.ones(len(self.rows), np.float32)
        batch = weighted(self.split.read(indices), self.rows, weight)
        return trimmed(batch, self._longest(k)) if self.lengths else batch

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`; examples in files are decoded ahead by Grain's threads."""
        if self.split.in_memory:
            return map(self, range(start, stop))
        import grain

        steps = grain.MapDataset.range(start, stop).map(self)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)))

    def _indices(self, k: int, rows: np.ndarray) -> np.ndarray:
        """The examples in `rows` of the global batch `k`."""
        epochs, places = np.divmod(k * self.batch_size + rows, self.split.size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            mask = epochs == epoch
            indices[mask] = self._order(int(epoch))[places[mask]]
        return indices

    def _longest(self, k: int) -> dict[str, int]:
        """The longest texts of the whole batch `k`, to which every process pads."""
        indices = self._indices(k, np.arange(self.batch_size))
        return {name: int(lengths[indices].max()) for name, lengths in self.lengths.items()}

    def _by_length(self, pool: np.ndarray) -> np.ndarray:
        """The order of examples by length; of pairs by the target's, then by the source's."""
        return np.lexsort([lengths[pool] for lengths in self.lengths.values()])

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = self.split.order(rng)
        if not self.lengths:
            return order
        pools = [order[i : i + POOL * self.batch_size] for i in range(0, len(order), POOL * self.batch_size)]
        order = np.concatenate([pool[self._by_length(pool)] for pool in pools])
        whole = len(order) // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        return np.concatenate([rng.permutation(batches).ravel(), order[whole * self.batch_size :]])


def trimmed(batch: Arrays, longest: dict[str, int]) -> Arrays:
    """A batch of texts without the padding that all share, in one of a few widths or the full one."""
    batch = dict(batch)
    for length, n in longest.items():
        batch |= {name: batch[name][:, : width_for(n)].copy() for name in WIDTHS[length] if name in batch}
    return batch


def weighted(examples: Arrays, rows: np.ndarray, weight: np.ndarray) -> Arrays:
    """Examples with their numbers `row` int32 [B] and their `weight` float32 [B], times one [B, ...] of their own."""
    if (own := examples.get("weight")) is not None:
        weight = own * weight.reshape(-1, *[1] * (own.ndim - 1))
    return {**examples, "row": rows.astype(np.int32), "weight": weight}


def eval_batches(
    read: Callable[[np.ndarray], Arrays], size: int, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[Arrays]:
    """Examples 0 to `size` - 1 once, in order, in batches of one size: the last is padded with examples of weight 0.

    `read` gives the examples of indices [n], stacked; `row` int32 [B] is the example's number.
    """
    rows = np.arange(batch_size) if rows is None else rows
    for start in range(0, size, batch_size):
        indices = start + rows
        weight = (indices < size).astype(np.float32)
        examples = read(np.minimum(indices, size - 1))
        yield weighted(examples, indices, weight)
