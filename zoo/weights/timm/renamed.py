"""Layouts whose tensors are torchvision's under other names, some of them with axes of length 1 more or fewer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.weights import torchvision
from zoo.weights.names import without_prefix


class Renamed(NamedTuple):
    """A layout, with the methods of `huggingface.layout.TensorLayout` that reading needs."""

    mark: str  # an array that identifies the family, by torchvision's name
    rename: Callable[
        [Mapping[str, tuple[int, ...]]], dict[str, str]
    ]  # torchvision's names, with our shapes, to the file's

    def is_of(self, variables: Mapping[str, Any]) -> bool:
        """Whether (unstacked) variables belong to the family."""
        return self.mark in torchvision.names(variables)

    def names(self, variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
        """Every leaf by its name in the state dict, with its path."""
        found = torchvision.names(variables)
        renamed = self.rename({name: leaf.shape for name, (_, leaf) in found.items()})
        return {renamed[name]: place for name, place in found.items()}

    def matches(self, tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> int:
        """How many tensors of a file have a place in the model."""
        return len(self.names(variables).keys() & self.prepared(tensors, variables).keys())

    def prepared(self, tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Tensors of a file with the names of `names`."""
        return without_prefix(tensors, self.names(variables).__contains__)

    def from_file(self, tensor: np.ndarray, leaf: Any, path: tuple[str, ...]) -> np.ndarray:
        """A view of the tensor in our layout; ValueError (actual and expected) if it does not fit."""
        expected = torchvision.file_shape(leaf)
        if [n for n in tensor.shape if n > 1] == [n for n in expected if n > 1]:  # a dense layer as a 1x1 convolution
            tensor = tensor.reshape(expected)
        return torchvision.from_file(tensor, leaf, path)

    def file_shape(self, leaf: Any) -> tuple[int, ...]:
        """The shape of a leaf in the file, but for axes of length 1."""
        return torchvision.file_shape(leaf)

    def to_file(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The state dict of (unstacked) variables; scales of channels [C, 1, 1] as [C]."""
        names = self.rename({name: leaf.shape for name, (_, leaf) in torchvision.names(variables).items()})
        tensors = torchvision.to_file(variables).items()
        return {names[name]: tensor.reshape(-1) if tensor.ndim == 3 else tensor for name, tensor in tensors}

    def differs_in_classes(self, tensor: np.ndarray, leaf: Any) -> bool:
        """Whether a head's tensor would fit but for the number of classes."""
        return torchvision.differs_in_classes(tensor, leaf)

    def ignored(self, name: str) -> bool:
        """Whether a tensor of the file has no place in a model."""
        return torchvision.ignored(name)
