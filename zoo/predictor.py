"""The probabilities of classes, for batches that are padded to few shapes so that few programs are compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo.errors import ZooError
from zoo.run import Run


def fills(run: Run) -> bool:
    """Whether a model predicts the tokens at [MASK]."""
    return getattr(run.model, "output", None) == "tokens" and not run.inputs.labels


def at_least(sizes: Sequence[int], size: int) -> int:
    """The first of the sizes that is not smaller; the size itself if all are."""
    return next((one for one in sizes if one >= size), size)


class Program:
    """A model's outputs, float32 [n, ...], for batches as its inputs make them.

    A batch is filled up to one of `sizes` rows, and its texts are cut or padded to one of `widths` tokens.
    """

    def __init__(self, run: Run, sizes: Sequence[int], widths: Sequence[int] = ()):
        self.run, self.sizes, self.widths = run, sizes, widths
        self.apply = jax.jit(run.model.apply)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        count = len(next(iter(batch.values())))
        batch = {name: _filled(array, at_least(self.sizes, count)) for name, array in batch.items()}
        if self.widths and "tokens" in batch:
            batch["tokens"] = batch["tokens"][:, : at_least(self.widths, int(batch["length"].max()))]
        args, kwargs = self.run.inputs.arguments(batch)
        return np.asarray(self.apply(self.run.variables, *args, **kwargs), np.float32)[:count]

    def compile(self) -> None:
        """Compiles the program of every shape that a batch can have."""
        inputs: Any = self.run.inputs
        for size in self.sizes:
            if inputs.kind == "image":
                self({"image": np.zeros((size, *inputs.shape), np.uint8)})
            for width in self.widths if inputs.kind == "text" else ():
                tokens, length = np.zeros((size, inputs.length), np.int32), np.full(size, width, np.int32)
                self({"tokens": tokens, "length": length})


class Predictor:
    """The classes of images or texts, or of a text the tokens at its [MASK]."""

    def __init__(self, run: Run, sizes: Sequence[int], widths: Sequence[int] = ()):
        self.run, self.program, self.exclusive = (
            run,
            Program(run, sizes, widths),
            getattr(run.inputs, "exclusive", True),
        )

    def __call__(self, raws: Sequence[Any]) -> list[list[np.ndarray]]:
        """For each raw its probabilities, one array [classes]; for a text with several [MASK] one for each."""
        inputs: Any = self.run.inputs
        batch = inputs.batch(raws)
        logits = self.program(batch)
        probabilities = np.asarray(jax.nn.softmax(logits) if self.exclusive else jax.nn.sigmoid(logits))
        if not fills(self.run):
            return [[row] for row in probabilities]
        found = []
        for raw, tokens, rows in zip(raws, batch["tokens"], probabilities, strict=True):
            places = np.flatnonzero(tokens == inputs.mask)
            if not len(places):
                raise ZooError(f"{raw!r:.200} has no [MASK] to predict")
            found.append([rows[place] for place in places])
        return found

    def best(self, row: np.ndarray, top_k: int | None = None) -> list[tuple[str, float]]:
        """The most probable labels of an array, with their probabilities; by default three, or those above one half of
        a model with several labels."""
        inputs: Any = self.run.inputs
        most = top_k or (3 if self.exclusive else int((row > 0.5).sum()))
        name = (lambda token: inputs.decode([token])) if fills(self.run) else inputs.labels.__getitem__
        return [(name(int(i)), float(row[i])) for i in (-row).argsort()[:most]]


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with its last row repeated up to a number of rows."""
    return np.concatenate([array, np.repeat(np.asarray(array[-1:]), rows - len(array), axis=0)])
