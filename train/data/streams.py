"""One long text as a stream of tokens, and its batches for truncated back-propagation."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from zoo.errors import ZooError

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stream:
    """One long text: `tokens` [N], read in windows of `window` targets; `characters` [N] of the text per token.

    Where documents are packed, `begins` are the positions at which they begin, the first of them 0.
    """

    tokens: np.ndarray
    window: int
    characters: np.ndarray
    begins: np.ndarray | None = None
    in_memory = True

    @property
    def described(self) -> str:
        return f"{self.size:,} tokens"

    @property
    def size(self) -> int:
        """Tokens that have a predecessor in their document, from which they are predicted."""
        return len(self.tokens) - (1 if self.begins is None else len(self.begins))

    @property
    def rows(self) -> float:
        return len(self.tokens) / self.window

    def read(self, starts: np.ndarray) -> Arrays:
        """Windows that begin at `starts` [n] and wrap around the text's end: `tokens` and `targets` int32 [n, window],
        `characters` float32 of the targets, and their `weight` float32.

        Packed documents add `segments` int32 [n, window], the document's number. The first token of a document has
        weight 0, since nothing precedes it.
        """
        places = starts[:, None] % len(self.tokens) + np.arange(self.window + 1)
        laps, within = np.divmod(places, len(self.tokens))
        rows = self.tokens[within].astype(np.int32)
        characters = self.characters[within[:, 1:]].astype(np.float32)
        batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "characters": characters}
        if self.begins is None:
            return {**batch, "weight": np.ones(batch["targets"].shape, np.float32)}
        numbers = (laps * len(self.begins) + np.searchsorted(self.begins, within, side="right")).astype(np.int32)
        weight = (numbers[:, 1:] == numbers[:, :-1]).astype(np.float32)
        return {**batch, "weight": weight, "segments": numbers[:, :-1]}

    def sample(self) -> Arrays:
        return {"tokens": self.tokens} if self.begins is None else {"tokens": self.tokens, "begins": self.begins}

    def batches(self, batch_size: int, seed: int, rows: np.ndarray | None = None) -> "StreamBatches":
        return StreamBatches(self, batch_size, seed, rows)

    def eval_steps(self, batch_size: int) -> int:
        return math.ceil(math.ceil((len(self.tokens) - 1) / batch_size) / self.window)

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Arrays]:
        """Every token but the very first (of packed documents, each one's first) as a target once.

        The text is cut into `batch_size` equal pieces, one a row, which are read window by window.
        """
        rows = np.arange(batch_size) if rows is None else rows
        last = len(self.tokens) - 1
        piece = -(-last // batch_size)
        starts, ends = rows * piece, np.minimum((rows + 1) * piece, last)
        for begin in range(0, piece, self.window):
            batch = self.read(starts + begin)
            batch["weight"] *= starts[:, None] + begin + np.arange(self.window) < ends[:, None]
            yield {**batch, "row": rows.astype(np.int32)}


class StreamBatches:
    """The training batches of a stream: row r of batch k + 1 continues row r of batch k.

    The text is a circle. The rows start at equal distances on it, turned by an angle drawn from the seed, and each
    advances by a window a batch. When a row reaches the start of the next, every token has been read once: an epoch.
    Arrays are those of `Stream.read`, with `row` int32 [B].
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
