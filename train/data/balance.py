"""Balanced sampling: a split whose epochs have every class as often, however often the examples do."""

import dataclasses
from typing import Any

import numpy as np

from train.data.source import Arrays, Examples
from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class Balanced(Examples):
    """The examples of a `split` with `labels` int [n].

    An epoch has as many examples as the split. Those of a frequent class are a part, another one in each epoch; those
    of a rare class are repeated.
    """

    split: Any

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.split.labels

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.split.size

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        return self.split.in_memory

    @property
    def lengths(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        return self.split.lengths

    def read(self, indices: np.ndarray) -> Arrays:  # type: ignore[override]
        return self.split.read(indices)

    def sample(self) -> Arrays:
        return self.split.sample()

    def part(self, start: int, stop: int) -> "Balanced":
        return Balanced(self.split.part(start, stop))

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """An epoch, int [size]: in every class as many examples as in the others, but for one more in some."""
        classes = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        share = -(-self.size // len(classes))
        laps = [-(-share // len(rows)) for rows in classes]
        drawn = [
            np.concatenate([rng.permutation(rows) for _ in range(n)])[:share]
            for rows, n in zip(classes, laps, strict=True)
        ]
        rounds = np.stack(drawn, axis=1).ravel()[: self.size]  # one of each class after another
        return rng.permutation(rounds)


def balanced(split: Any, name: str) -> Balanced:
    """A split with its batches balanced; ZooError where its labels are not known without reading all examples."""
    if split.labels is None:
        raise ZooError(f"data.balanced needs labels in memory; {name} is read from files with them: use class weights")
    return Balanced(split)
