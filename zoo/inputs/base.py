"""The protocol of inputs: raw data (a file, a string) to the arrays that a model was trained on, and back."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError, unknown

_KINDS: dict[str, type["Inputs"]] = {}


class Inputs(ABC):
    """Inputs of one kind. A subclass is a frozen dataclass of plain values, saved with every trained model.

    A subclass registers itself by its `kind` where it is defined: a run of a user's own kind is read back by `zoo.load`
    once the module that defines the class has been imported.
    """

    kind: ClassVar[str]  # the name of the kind in JSON, one per class
    labels: tuple[str, ...]  # the classes in the order of the logits; empty for a model without classes
    shape: tuple[int, ...]  # of the first array of an example, without the batch axis

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if kind is None:  # inherited, or of an abstract class
            return
        held = _KINDS.get(kind)
        if held is not None and held.__qualname__ != cls.__qualname__:
            raise ZooError(f"the kind of inputs {kind!r} is taken by {held.__qualname__}; choose another")
        _KINDS[kind] = cls

    @abstractmethod
    def encode(self, raw: Any) -> np.ndarray:
        """One raw example to the array that a model is applied to, without the batch axis; ZooError for other data."""

    @abstractmethod
    def decode(self, array: Any) -> Any:
        """The inverse of `encode`; where a model's outputs have another form (a translation), the inverse of those."""

    @abstractmethod
    def batch(self, raws: Sequence[Any]) -> dict[str, np.ndarray]:
        """Raw examples as a batch of arrays by name, in the form of the data sets."""

    @abstractmethod
    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a model for a batch; pure, also inside jit."""

    def model_args(self) -> dict[str, Any]:
        """Fields of a model that follow from the inputs: {"num_classes": 10}."""
        return {"num_classes": len(self.labels)} if self.labels else {}

    @abstractmethod
    def example(self) -> Example:
        """Abstract `arguments` of a batch of one."""

    def to_json(self) -> dict[str, Any]:
        """`kind` and the fields, as JSON holds them; `inputs_from_json` reads them back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]


def make_part(inputs: Inputs, name: str, kind: type[Inputs]) -> None:
    """Makes a field of a frozen class that is inputs itself from a dict, as JSON has it; ZooError unless it is such."""
    part = getattr(inputs, name)
    if isinstance(part, dict):
        part = kind(**{key: value for key, value in part.items() if key != "kind"})
        object.__setattr__(inputs, name, part)
    if not isinstance(part, kind):
        raise ZooError(f"{name} must be inputs of kind {kind.kind}, not {part!r:.80}")


def inputs_from_json(data: dict[str, Any]) -> Inputs:
    """The inputs that `to_json` described, JSON's lists as tuples; ZooError for an unknown kind, with the nearest ones,
    and for fields that do not fit."""
    if not isinstance(data, dict) or "kind" not in data:
        raise ZooError(f"inputs must be an object with a field kind, not {data!r:.80}")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = fields.pop("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise unknown("kind of inputs", str(kind), _KINDS)
    try:
        return _KINDS[kind](**fields)
    except (TypeError, OverflowError) as error:
        raise ZooError(f"inputs of kind {kind} do not fit: {error}") from None
