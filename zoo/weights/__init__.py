"""Weights in `.safetensors` files, in our own layout or other people's, checked completely before use."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.registry import abstract_variables, create_model, example_of
from zoo.transformer.layers import unstacked
from zoo.weights import huggingface, native, recurrent, torchvision
from zoo.weights.files import MOST_MADE
from zoo.weights.files import read_safetensors as read_safetensors
from zoo.weights.files import read_sharded as read_sharded
from zoo.weights.files import write_safetensors as write_safetensors
from zoo.weights.fit import Variables, fit
from zoo.weights.names import renamed
from zoo.weights.torch_file import convert_torch as convert_torch


def load_weights(
    model: str | nn.Module,
    path: str | os.PathLike,
    input_shape: tuple[int, ...] | None = None,
    rename: Mapping[str, str | None] | None = None,
    draw: bool = True,
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Variables:
    """The variables of `model` from a `.safetensors` file, or from the `.safetensors.index.json` of a sharded one, in
    the layout of torchvision, torch's recurrent layers, Hugging Face's transformers, or our own.

    `model` is a registered name, with `overrides` of its fields, or a module. `input_shape` (of one example) defaults
    to the registered one; it matters where a dense layer follows a flattened map. `rename` are regular expressions:
    each in turn is replaced in the file's names as by `re.sub`, or, with None, drops the tensors whose names have it.
    Then a prefix that all names share, such as `module.`, is left out if more names fit without it.

    With a warning each: if the file has no head, no pooler, or a head for another number of classes, only these are
    drawn anew; the first kernel is adapted to another number of image channels; a ViT's positions are resized to its
    image size. `draw=False` refuses weights without a head.

    The file is mapped, and each array is copied once, into its place: on the default device, or on those of `mesh`,
    each with its own part, by the model's `partition_rules`. ZooError names every missing, unexpected or misshapen
    tensor; weights are never loaded in part.
    """
    module = create_model(model, **overrides) if isinstance(model, str) else model.clone(**overrides)
    example = example_of(module, input_shape)
    template = _template(module, example)
    size = sum(math.prod(leaf.shape) * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(template))
    read = read_sharded if str(path).endswith(".index.json") else read_safetensors
    tensors = renamed(read(path, 2 * size + MOST_MADE), rename or {})
    return fit(module, example, template, tensors, repr(str(path)), draw, mesh)


def fitted(
    module: nn.Module,
    variables: Variables,
    input_shape: tuple[int, ...],
    where: str = "the stored model",
    draw: bool = True,
    mesh: Mesh | None = None,
) -> Variables:
    """Variables converted to a module with other fields: other dtypes, scanned or separate layers, and what
    `load_weights` draws anew or adapts, with a warning. ZooError, which calls them `where`, if other shapes differ."""
    example = example_of(module, input_shape)
    template = _template(module, example)
    expected = native.names(jax.eval_shape(unstacked, template))
    tensors = native.to_file(unstacked(variables))
    cast = {name: tensors[name].astype(leaf.dtype) for name, (_, leaf) in expected.items() if name in tensors}
    return fit(module, example, template, {**tensors, **cast}, where, draw, mesh)


def _template(module: nn.Module, example: Example) -> Variables:
    """Shapes and dtypes of the variables; of a stack of equal layers one is traced."""
    if not getattr(module, "scan_layers", True):
        with contextlib.suppress(ZooError):  # layers that differ, although their variables do not
            return jax.eval_shape(unstacked, abstract_variables(module.clone(scan_layers=True), *example))
    return abstract_variables(module, *example)


def save_weights(variables: Variables, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Writes variables in torch's form: the layout of torchvision (without `num_batches_tracked`), of torch's recurrent
    layers, or of Hugging Face's transformers. An existing file is replaced only with `overwrite`.

    ZooError where `variables` are no collections, as `model.init` returns them (`{"params": params, ...}`), and where
    two arrays would have the same name in the file.
    """
    plain = unstacked(_collections(variables))
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    layout: Any = recurrent if any(path[-1].key == "recurrent_kernel" for path, _ in leaves) else torchvision
    layout = huggingface.layout_of(plain) or layout
    write_safetensors(layout.to_file(plain), path, overwrite)


def save_native(
    variables: Variables, path: str | os.PathLike, overwrite: bool = False, config: Mapping[str, Any] | None = None
) -> None:
    """Writes variables in our own layout: one tensor per leaf, `collection/module/.../name`. With a `config`, as a
    run's config.json has it, `zoo.load` reads the file alone. ZooError where `variables` are no collections."""
    metadata = None if config is None else {"config": json.dumps(config)}
    write_safetensors(native.to_file(unstacked(_collections(variables))), path, overwrite, metadata)


def _collections(variables: Any) -> Variables:
    """Variables, checked: nested mappings with arrays for leaves, the parameters in the collection `params`."""
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        has = f"{', '.join(map(str, variables))!s:.80}" if isinstance(variables, Mapping) else type(variables).__name__
        raise ZooError(
            f"variables must be collections such as {{'params': ..., 'batch_stats': ...}}, as model.init returns them, "
            f"not {has}; parameters alone lack the statistics of batch normalisation"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not all(isinstance(getattr(key, "key", None), str) for key in path) or not hasattr(leaf, "dtype"):
            raise ZooError(f"variables must be nested dicts of arrays; {name} is {type(leaf).__name__}")
    return variables
