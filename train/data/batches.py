"""batch(k): a pure function of the seed and k, whatever the layout; and evaluation, each example once."""

import functools
from collections.abc import Iterator

import numpy as np

from train.data.dataset import Arrays, Split
from train.data.text import Stream
from zoo.errors import ZooError


def train_batches(
    split: Split, batch_size: int, seed: int, process: int = 0, processes: int = 1
) -> "Batches | StreamBatches":
    """The training batches of a split of examples, or of one stream."""
    kind = StreamBatches if isinstance(split, Stream) else Batches
    return kind(split, batch_size, seed, process, processes)  # type: ignore[arg-type]


class Batches:
    """The training batches of a split of examples.

    Epochs are permutations of the split, drawn from (seed, epoch) and laid end to end; batch k is the k-th piece of
    `batch_size`. Process i of n reads rows [i B / n, (i + 1) B / n). Besides the examples a batch has `row` int32 (the
    place in the global batch) and `weight` float32 (ones).
    """

    def __init__(self, split: Split, batch_size: int, seed: int, process: int = 0, processes: int = 1):
        self.split, self.batch_size, self.seed = split, batch_size, seed
        share = batch_size // processes
        self.rows = np.arange(process * share, (process + 1) * share)
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""
        epochs, places = np.divmod(k * self.batch_size + self.rows, self.split.size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            mask = epochs == epoch
            indices[mask] = self._order(int(epoch))[places[mask]]
        weight = np.ones(len(self.rows), np.float32)
        return {**self.split.read(indices), "row": self.rows.astype(np.int32), "weight": weight}

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`; what is decoded from files is read ahead by Grain's threads."""
        if self.split.in_memory:
            return map(self, range(start, stop))
        import grain

        steps = grain.MapDataset.range(start, stop).map(self)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)))

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.split.size)


class StreamBatches:
    """The training batches of a stream, for truncated back-propagation: row r of batch k + 1 goes on where row r of
    batch k ends.

    The text is a circle on which the rows stand at equal distances, turned by an angle drawn from the seed; each reads
    on by a window a batch. When a row reaches where the next one began, every symbol has been read once, and what
    follows is the next epoch. Arrays are those of `Stream.read`, with `row` int32 [B] and `weight` float32 [B, window].
    """

    def __init__(self, split: Stream, batch_size: int, seed: int, process: int = 0, processes: int = 1):
        length = len(split.tokens)
        if length < batch_size * split.window:
            raise ZooError(
                f"the training text has {length:,} tokens, fewer than one batch of batch-size {batch_size} times "
                f"data.context {split.window}"
            )
        self.split, share = split, batch_size // processes
        self.rows = np.arange(process * share, (process + 1) * share)
        self.starts = np.random.default_rng(seed).integers(length) + self.rows * length // batch_size

    def __call__(self, k: int) -> Arrays:
        """The arrays of batch `k`, fresh ones each time."""
        weight = np.ones((len(self.rows), self.split.window), np.float32)
        examples = self.split.read(self.starts + k * self.split.window)
        return {**examples, "row": self.rows.astype(np.int32), "weight": weight}

    def from_step(self, start: int, stop: int) -> Iterator[Arrays]:
        """Batches `start` to `stop - 1`."""
        return map(self, range(start, stop))


def eval_batches(split: Split, batch_size: int, process: int = 0, processes: int = 1) -> Iterator[Arrays]:
    """Every example once, in order, in batches of one size: the last is padded with examples of weight 0.

    A stream is cut into `batch_size` equal pieces, a row each, that are read window by window: every symbol but the
    very first is told once.
    """
    share = batch_size // processes
    rows = np.arange(process * share, (process + 1) * share)
    if isinstance(split, Stream):
        piece = -(-split.size // batch_size)
        starts, ends = rows * piece, np.minimum((rows + 1) * piece, split.size)
        for begin in range(0, piece, split.window):
            weight = (starts[:, None] + begin + np.arange(split.window) < ends[:, None]).astype(np.float32)
            yield {**split.read(starts + begin), "row": rows.astype(np.int32), "weight": weight}
        return
    for start in range(0, split.size, batch_size):
        indices = start + rows
        weight = (indices < split.size).astype(np.float32)
        yield {**split.read(np.minimum(indices, split.size - 1)), "row": rows.astype(np.int32), "weight": weight}
