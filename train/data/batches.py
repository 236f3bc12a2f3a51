"""batch(k): a pure function of the seed and k, whatever the layout; and evaluation, each example once."""

import functools
import math
from collections.abc import Iterator

import numpy as np

from train.data.dataset import Arrays, ArraySplit, Split
from train.data.text import Stream
from zoo.errors import ZooError
from zoo.inputs.text import width_for

POOL = 64  # batches whose texts are sorted by length together
WIDTHS = {"source_length": ("source",), "length": ("tokens", "target")}  # the arrays that are as wide as their lengths


def train_batches(
    split: Split, batch_size: int, seed: int, rows: np.ndarray | None = None
) -> "Batches | StreamBatches":
    """The training batches of a split of examples, or of one stream."""
    kind = StreamBatches if isinstance(split, Stream) else Batches
    return kind(split, batch_size, seed, rows)  # type: ignore[arg-type]


class Batches:
    """The training batches of a split of examples.

    Epochs are permutations of the split, drawn from (seed, epoch) and laid end to end; batch k is the k-th piece of
    `batch_size`. A process reads its `rows` of it, by default all. Besides the examples a batch has `row` int32 (the
    place in the global batch) and `weight` float32 (ones).

    Texts come together with others of about their length: `POOL` batches are drawn at a time, sorted, cut and put in
    random order; and a batch is as wide as its longest text, to the next of a few widths, so that few compile.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, rows: np.ndarray | None = None):
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rows = np.arange(batch_size) if rows is None else rows
        arrays = split.arrays if isinstance(split, ArraySplit) else {}
        self.lengths = {name: arrays[name] for name in WIDTHS if name in arrays}
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""
        indices = self._indices(k, self.rows)
        weight = np.ones(len(self.rows), np.float32)
        batch = {**self.split.read(indices), "row": self.rows.astype(np.int32), "weight": weight}
        return trimmed(batch, self._longest(k)) if self.lengths else batch

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`; what is decoded from files is read ahead by Grain's threads."""
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
        """The longest texts of the whole batch `k`, which every process pads to."""
        indices = self._indices(k, np.arange(self.batch_size))
        return {name: int(lengths[indices].max()) for name, lengths in self.lengths.items()}

    def _by_length(self, pool: np.ndarray) -> np.ndarray:
        """The order of examples by length: of pairs by the target's, then by the source's."""
        return np.lexsort([lengths[pool] for lengths in self.lengths.values()])

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.split.size)
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


class StreamBatches:
    """The training batches of a stream, for truncated back-propagation: row r of batch k + 1 goes on where row r of
    batch k ends.

    The text is a circle on which the rows stand at equal distances, turned by an angle drawn from the seed; each reads
    on by a window a batch. When a row reaches where the next one began, every symbol has been read once, and what
    follows is the next epoch. Arrays are those of `Stream.read`, with `row` int32 [B].
    """

    def __init__(self, split: Stream, batch_size: int, seed: int, rows: np.ndarray | None = None):
        length = len(split.tokens)
        if length < batch_size * split.window:
            raise ZooError(
                f"the training text has {length:,} tokens, fewer than one batch of batch-size {batch_size} times "
                f"data.context {split.window}"
            )
        self.split, self.rows = split, np.arange(batch_size) if rows is None else rows
        self.starts = np.random.default_rng(seed).integers(length) + self.rows * length // batch_size

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""
        return {**self.split.read(self.starts + k * self.split.window), "row": self.rows.astype(np.int32)}

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`."""
        return map(self, range(start, stop))


def eval_steps(split: Split, batch_size: int) -> int:
    """How many batches `eval_batches` gives."""
    if isinstance(split, Stream):
        return math.ceil(math.ceil((len(split.tokens) - 1) / batch_size) / split.window)
    return math.ceil(split.size / batch_size)


def eval_batches(split: Split, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
    """Every example once, in order, in batches of one size: the last is padded with examples of weight 0.

    A stream is cut into `batch_size` equal pieces, a row each, that are read window by window: every symbol but the
    very first, or of packed documents each one's first, is told once.
    """
    rows = np.arange(batch_size) if rows is None else rows
    if isinstance(split, Stream):
        last = len(split.tokens) - 1
        piece = -(-last // batch_size)
        starts, ends = rows * piece, np.minimum((rows + 1) * piece, last)
        for begin in range(0, piece, split.window):
            batch = split.read(starts + begin)
            batch["weight"] *= starts[:, None] + begin + np.arange(split.window) < ends[:, None]
            yield {**batch, "row": rows.astype(np.int32)}
        return
    for start in range(0, split.size, batch_size):
        indices = start + rows
        weight = (indices < split.size).astype(np.float32)
        yield {**split.read(np.minimum(indices, split.size - 1)), "row": rows.astype(np.int32), "weight": weight}
