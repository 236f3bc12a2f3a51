"""State dicts with the names of Hugging Face's `transformers`, by one table per architecture.

`params/layers/layer0/mlp/up/kernel` [in, out] is `model.layers.0.mlp.up_proj.weight` [out, in] in a Llama. Leaves with
the same name in a table are concatenated into one tensor: GPT-2's queries, keys and values.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError
from zoo.weights.names import is_counter, without_prefix

_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}
Path = tuple[str, ...]


class TensorLayout(NamedTuple):
    """Names and forms of one architecture's tensors; regular expressions match at the beginning of a name."""

    title: str  # for messages
    marks: tuple[str, ...]  # modules or arrays that identify the architecture
    table: Mapping[str, str]  # our modules and top-level arrays to their names; {} is the layer's number
    prefix: str  # the part of names that a file of the body alone omits
    body: str  # pattern of names that then lack the prefix
    unused: str  # pattern of tensors without a place in a model, such as masks
    tied: tuple[str, str] | None = None  # names of head and embedding, one tensor in a tied model
    older: tuple[tuple[str, str], ...] = ()  # endings of names in older files, with the current ones
    as_it_is: bool = False  # kernels of layers are [in, out] in the file too
    interleaved: bool = False  # arrays that share a name lie side by side head by head, not one after the other
    num_heads: int = 0  # where that is so
    # modules and arrays of one task each, a tuple a task: drawn anew where the file has none of a tuple
    heads: tuple[tuple[str, ...], ...] = ()
    zeros: tuple[str, ...] = ()  # names of tensors that are zeros where a file has none
    flat: tuple[str, ...] = ()  # arrays whose leading axes of length 1 the file lacks

    def is_of(self, variables: Mapping[str, Any]) -> bool:
        """Whether (unstacked) variables belong to this architecture."""
        paths = ["/".join(path[1:]) for path in _paths(variables)]
        return all(any(f"{path}/".startswith(f"{mark}/") for path in paths) for mark in self.marks)

    def ignored(self, name: str) -> bool:
        """Whether a tensor of the file has no place in a model. A tied head repeats the embedding."""
        tied = bool(self.tied and name == self.tied[0])
        return tied or is_counter(name) or re.match(self.unused, name) is not None

    def names_all(self, variables: Mapping[str, Any]) -> bool:
        """Whether every leaf of (unstacked) variables has a tensor."""
        try:
            return bool(self._groups(variables))
        except ZooError:
            return False

    def matches(self, tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> int:
        """How many tensors of a file have a place in the model, those of its shape twice; 0 for a model with parts that
        the layout lacks."""
        try:
            shapes = {name: leaf.shape for name, (_, leaf) in self.names(variables).items()}
        except ZooError:
            return 0
        found = {self.full_name(name): tensor for name, tensor in self._unwrapped(tensors, shapes.keys()).items()}
        fitting = sum(found[name].shape == shapes[name] for name in shapes.keys() & found.keys())
        return len(shapes.keys() & found.keys()) + fitting

    def prepared(self, tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A state dict with the names of a complete model, also if the file holds only the body.

        ValueError if the file has a separate head and the model, a tied one, does not.
        """
        tensors = self._unwrapped(tensors, self._groups(variables).keys())
        named = {self.full_name(name): tensor for name, tensor in tensors.items()}
        if len(named) < len(tensors):
            raise ValueError("it has two tensors of one name, with and without the prefix of a body")
        expected = self.names(variables) if {*self.zeros} - named.keys() else {}
        named = {name: np.zeros(expected[name][1].shape, np.float32) for name in self.zeros if name in expected} | named
        if self.tied and self.tied[0] not in self._groups(variables) and set(self.tied) <= set(named):
            head, embedding = (named[name] for name in self.tied)
            if head is not embedding and not np.array_equal(head, embedding):
                raise ValueError(f"its {self.tied[0]} is not its embedding, as in a tied model; give tied=False")
        return named

    def _unwrapped(self, tensors: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
        return without_prefix(tensors, lambda name: self.full_name(name) in names)

    def full_name(self, name: str) -> str:
        """The name of a tensor in a complete model of the library's present version."""
        ending, now = next(((old, new) for old, new in self.older if name.endswith(old)), ("", ""))
        return re.sub(f"^(?={self.body})", self.prefix, name.removesuffix(ending) + now)

    def names(self, variables: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
        """Tensors of the state dict by name, each with the path of its (first) leaf and its shape in the file."""
        shapes = jax.eval_shape(self.to_file, variables)
        return {name: (paths[0], shapes[name]) for name, paths in self._groups(variables).items()}

    def from_file(self, tensor: np.ndarray, leaf: Any, path: Path) -> np.ndarray:
        """The tensor; ValueError (actual and expected) if it does not fit."""
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            raise ValueError(f"{tensor.dtype}, not floating point")
        if tensor.shape != leaf.shape:
            raise ValueError(f"{tensor.shape}, not {leaf.shape}")
        return tensor

    def file_shape(self, leaf: Any) -> tuple[int, ...]:
        """The shape of a leaf of `names` in the file."""
        return leaf.shape

    def differs_in_classes(self, tensor: np.ndarray, leaf: Any) -> bool:
        """Whether a head's tensor would fit but for the number of classes."""
        return bool(self.heads) and tensor.shape[1:] == leaf.shape[1:]

    def to_file(self, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The state dict of (unstacked) variables."""
        found, tensors = _paths(variables), {}
        for name, paths in self._groups(variables).items():
            parts = [self._turned(path, self._flat(path, found[path])) for path in paths]
            if len({part.shape for part in parts}) > 1 and (self.as_it_is or self.interleaved):
                raise ZooError(f"Hugging Face's {self.title} needs as many key heads as query heads, for {name}")
            tensors[name] = parts[0] if len(parts) == 1 else self._joined(parts)
        return tensors

    def leaves(self, tensors: Mapping[Path, np.ndarray], variables: Mapping[str, Any]) -> dict[Path, np.ndarray]:
        """The inverse of `to_file`: leaves of (unstacked) variables by path, views of tensors by paths of `names`."""
        found, shapes = {}, _paths(variables)
        for paths in self._groups(variables).values():
            if paths[0] in tensors:
                whole = tensors[paths[0]]
                parts = [whole] if len(paths) == 1 else self._split(whole, [shapes[path].shape[-1] for path in paths])
                for path, part in zip(paths, parts, strict=True):
                    part = self._turned(path, part, back=True)
                    found[path] = part.reshape(shapes[path].shape) if "/".join(path[1:]) in self.flat else part
        return found

    def of(self, module: Any) -> "TensorLayout":
        """The layout for a module's number of heads."""
        return self._replace(num_heads=module.num_heads) if self.interleaved else self

    def _flat(self, path: Path, leaf: Any) -> Any:
        """An array without the leading axes that the file lacks."""
        while "/".join(path[1:]) in self.flat and leaf.shape[0] == 1 and leaf.ndim > 1:
            leaf = leaf[0]
        return leaf

    def _joined(self, parts: list[Any]) -> Any:
        """Arrays of a file in one, along their outputs."""
        if not self.interleaved:
            return jnp.concatenate(parts, axis=-1 if self.as_it_is else 0)
        if not self.num_heads:
            raise ZooError(f"Hugging Face's {self.title} needs the number of heads: use zoo.save_pretrained")
        rows = [part.reshape(self.num_heads, -1, *part.shape[1:]) for part in parts]
        return jnp.concatenate(rows, axis=1).reshape(-1, *parts[0].shape[1:])

    def _split(self, whole: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
        """The inverse, for arrays with these numbers of outputs."""
        if not self.interleaved:
            return np.split(whole, np.cumsum(sizes)[:-1].tolist(), axis=-1 if self.as_it_is else 0)
        rows = whole.reshape(self.num_heads, len(sizes), -1, *whole.shape[1:])
        return [rows[:, i].reshape(-1, *whole.shape[1:]) for i in range(len(sizes))]

    def _turned(self, path: Path, leaf: Any, back: bool = False) -> Any:
        """A kernel in the file's form, or `back`: outputs first; for convolutions [out, in, height, width]."""
        if path[-1] != "kernel" or (self.as_it_is and _layer(path)):
            return leaf
        return leaf.T if leaf.ndim == 2 else leaf.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))

    def _groups(self, variables: Mapping[str, Any]) -> dict[str, list[Path]]:
        """Paths of leaves by the name of their tensor; in the table's order where several share a name."""
        order = {key: i for i, key in enumerate(self.table)}
        groups: dict[str, dict[int, Path]] = {}
        for path in _paths(variables):
            name, key = self._name(path)
            other = groups.setdefault(name, {}).setdefault(order[key], path)
            if other != path:
                both = f"{'/'.join(other)} and {'/'.join(path)}"
                raise ZooError(f"{both} would both be the tensor {name!r} in the file; use zoo.weights.save_native")
        return {name: [places[i] for i in sorted(places)] for name, places in groups.items()}

    def _name(self, path: Path) -> tuple[str, str]:
        """The name of a leaf's tensor and its key in the table; ZooError if Hugging Face has no such tensor."""
        number = _layer(path)
        keys = ["layer{}" if key == f"layer{number}" else key for key in path[1:]]
        for key, ending in (("/".join(keys), ""), ("/".join(keys[:-1]), f".{_LEAF.get(path[-1], path[-1])}")):
            if key in self.table:
                return self.table[key].format(number) + ending, key
        raise ZooError(f"Hugging Face's {self.title} has no {'/'.join(path)}; use zoo.weights.save_native")


def _layer(path: Path) -> str | None:
    return next((key[5:] for key in path if re.fullmatch(r"layer\d+", key)), None)


def _paths(variables: Mapping[str, Any]) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}
