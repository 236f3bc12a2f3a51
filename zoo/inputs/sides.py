"""What inputs of a source and a target share, whatever their tokens are."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs, make_part
from zoo.inputs.text import TextInputs, padded


class Sides(Inputs):
    """Sources and targets; the `length` of each side is its maximum number of tokens. A subclass has the fields
    `source` and `target`, and the ids `first`, which begins a target, and `end`."""

    source: TextInputs
    target: TextInputs
    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            make_part(self, name, TextInputs)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The larger maximum length of the two sides."""
        return (max(self.source.length, self.target.length),)

    def bounded(self, tokens: np.ndarray, raw: str) -> np.ndarray:
        """A source's tokens [n]; ZooError if they are more than `source.length`."""
        if len(tokens) > self.source.length:
            raise ZooError(
                f"the source has {len(tokens)} tokens, more than the model's limit of {self.source.length}: "
                f"{raw[:40]!r}..."
            )
        return tokens

    def before_end(self, array: Any) -> np.ndarray:
        """The tokens of a target before its end."""
        tokens = np.asarray(array).reshape(-1)
        ends = np.flatnonzero(tokens == self.end)  # type: ignore[attr-defined]
        return tokens[: ends[0]] if len(ends) else tokens

    def batch(self, raws: Sequence[str]) -> dict[str, np.ndarray]:
        """Sources: `source` int32 [n, length], padded, and `source_length` int32 [n]."""
        rows = [self.encode(raw) for raw in raws]
        return {"source": padded(rows, self.source.length), "source_length": np.array([*map(len, rows)], np.int32)}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for sources and targets: the tokens before each target token (`before` if
        the batch has it, else the target shifted by one), and the source."""
        before = batch.get("before")
        if before is None:
            target = jnp.asarray(batch["target"])
            begin = jnp.full((target.shape[0], 1), self.first, target.dtype)  # type: ignore[attr-defined]
            before = jnp.concatenate([begin, target[:, :-1]], axis=1)
        return (before,), {"source": batch["source"], "source_lengths": batch["source_length"]}

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: target tokens int32 [1, target.length]; as keywords, source tokens
        int32 [1, source.length] and their number int32 [1]."""
        target, source = ((1, side.length) for side in (self.target, self.source))
        arrays = [jax.ShapeDtypeStruct(shape, np.dtype(np.int32)) for shape in (target, source, (1,))]
        return (arrays[0],), {"source": arrays[1], "source_lengths": arrays[2]}
