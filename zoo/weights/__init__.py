"""Weights in `.safetensors` files, in our own layout or other people's, checked completely before use."""

import math
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.registry import abstract_variables, create_model, example_of
from zoo.transformer.layers import stacked, unstacked
from zoo.weights import huggingface, native, recurrent, torchvision
from zoo.weights.heads import unread_head
from zoo.weights.huggingface.layout import TensorLayout

Variables = Mapping[str, Any]
MOST_MADE = 2**28  # bytes of arrays made beyond the file's: a head drawn anew, resized positions


def load_weights(
    model: str | nn.Module, path: str | os.PathLike, input_shape: tuple[int, ...] | None = None, **overrides: Any
) -> Variables:
    """The variables of `model` from a `.safetensors` file, or from the `.safetensors.index.json` of a sharded one, in
    the layout of torchvision, torch's recurrent layers, Hugging Face's transformers, or our own.

    `model` is a registered name, with `overrides` of its fields, or a module. `input_shape` (of one example) defaults
    to the registered one; it matters where a dense layer follows a flattened map. If the file's head has another number
    of classes, or a Transformer's file has no head, only the head is drawn anew, with a warning; a ViT's positions are
    resized to its image size, also with a warning. ZooError names every missing, unexpected or misshapen tensor;
    weights are never loaded in part.
    """
    module = create_model(model, **overrides) if isinstance(model, str) else model.clone(**overrides)
    example = example_of(module, input_shape)
    template = abstract_variables(module, *example)
    size = sum(math.prod(leaf.shape) * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(template))
    read = read_sharded if str(path).endswith(".index.json") else read_safetensors
    return _fit(module, example, template, read(path, 2 * size + MOST_MADE), repr(str(path)))


def fitted(module: nn.Module, variables: Variables, input_shape: tuple[int, ...]) -> Variables:
    """Variables converted to a module with other fields: other dtypes, scanned or separate layers, a head for another
    number of classes (drawn anew, with a warning). ZooError if other shapes differ."""
    example = example_of(module, input_shape)
    template = abstract_variables(module, *example)
    expected = native.names(jax.eval_shape(unstacked, template))
    tensors = native.to_file(unstacked(variables))
    cast = {name: tensors[name].astype(leaf.dtype) for name, (_, leaf) in expected.items() if name in tensors}
    return _fit(module, example, template, {**tensors, **cast}, "the stored model")


def _fit(
    module: nn.Module, example: Example, template: Variables, tensors: dict[str, np.ndarray], where: str
) -> Variables:
    """Tensors in any layout as the variables of a module; `where` names their source in messages."""
    plain = jax.eval_shape(unstacked, template)  # the form of files: scanned stacks as separate layers
    layout: Any = native if native.is_native(tensors) else huggingface.layout_of(plain) or torchvision
    try:
        if isinstance(layout, TensorLayout):
            tensors = layout.merged(tensors, plain)
        elif recurrent.is_recurrent(tensors):
            layout, tensors = recurrent, recurrent.merged(tensors)
    except ValueError as error:
        raise ZooError(f"{where} does not fit {type(module).__name__}: {error}") from None
    expected = layout.names(plain)
    missing = sorted(set(expected) - set(tensors))
    others = set(tensors) - set(expected) - unread_head(module, layout)
    unexpected = sorted(name for name in others if not layout.ignored(name))
    leaves, misfits = {}, {}
    for name in set(expected) & set(tensors):
        keys, leaf = expected[name]
        tensor = tensors[name]
        if keys == ("params", "positions") and hasattr(module, "fit_positions"):
            _bounded(leaf, "resized positions")
            tensor = module.fit_positions(tensor)
        try:
            leaves[keys] = layout.from_file(tensor, leaf, keys)
        except ValueError as error:
            misfits[name] = keys, str(error)
    head = ("params", getattr(module, "head", ""))
    of_head = sorted(name for name, (keys, _) in expected.items() if keys[:2] == head)
    other_head = bool(misfits) and sorted(misfits) == of_head
    other_head &= all(layout.differs_in_classes(tensors[name], expected[name][1]) for name in misfits)
    if isinstance(layout, TensorLayout) and layout.classifies and missing and missing == of_head:
        other_head, missing = True, []
    wrong = [] if other_head else [f"{name} ({why})" for name, (_, why) in sorted(misfits.items())]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": wrong}
    if any(problems.values()):
        report = "; ".join(f"{kind}: {_some(found)}" for kind, found in problems.items() if found)
        raise ZooError(f"{where} does not fit {type(module).__name__}: {report}")
    if isinstance(layout, TensorLayout):
        leaves = layout.leaves(leaves, plain)
    if other_head:
        classes = getattr(module, "num_classes", "other")
        message = f"{where} has no head for this number of classes; the head {head[1]!r} ({classes}) is drawn anew"
        warnings.warn(message, stacklevel=3)
        _bounded(template["params"][head[1]], "a head drawn anew")
        leaves |= _initial_head(module, example, head[1])
    return stacked(nested(leaves, plain), template)


def save_weights(variables: Variables, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Writes variables in torch's form: the layout of torchvision (without `num_batches_tracked`), of torch's recurrent
    layers, or of Hugging Face's transformers. An existing file is replaced only with `overwrite`."""
    plain = unstacked(variables)
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    layout: Any = recurrent if any(path[-1].key == "recurrent_kernel" for path, _ in leaves) else torchvision
    layout = huggingface.layout_of(plain) or layout
    write_safetensors(layout.to_file(plain), path, overwrite)


def save_native(variables: Variables, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Writes variables in our own layout: one tensor per leaf, `collection/module/.../name`."""
    write_safetensors(native.to_file(unstacked(variables)), path, overwrite)


def read_safetensors(path: str | os.PathLike, most: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file by name. ZooError if it is missing, damaged, or larger than `most` bytes."""
    from safetensors import SafetensorError, safe_open

    if not pathlib.Path(path).is_file():
        raise ZooError(f"no weights file {str(path)!r}")
    _refuse_larger([pathlib.Path(path)], most, path)
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        hint = "; convert it first: python -m zoo convert x.pth x.safetensors" if _is_torch_file(path) else ""
        raise ZooError(f"{str(path)!r} is not a readable .safetensors file: {error}{hint}") from None


def read_sharded(index: str | os.PathLike, most: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors.index.json`, from the files beside it. ZooError if a file is missing, or all
    together are larger than `most` bytes."""
    index = pathlib.Path(index)
    if not index.is_file():
        raise ZooError(f"no weights index {str(index)!r}")
    try:
        places = dict(read_json(index)["weight_map"])
        if not all(isinstance(shard, str) for shard in places.values()):
            raise TypeError("its weight_map gives tensors no file names")
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{str(index)!r} is not a weights index: {error!r:.120}") from None
    for shard in sorted(set(places.values())):
        if shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise ZooError(f"{str(index)!r} names {shard!r}; a shard must be a file beside the index")
    _refuse_larger([index.parent / shard for shard in set(places.values())], most, index)
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        found = read_safetensors(index.parent / shard)
        wanted = [name for name, place in places.items() if place == shard]
        if lacking := sorted(set(wanted) - set(found)):
            raise ZooError(f"{str(index.parent / shard)!r} lacks tensors that its index lists: {_some(lacking)}")
        tensors |= {name: found[name] for name in wanted}
    return tensors


def write_safetensors(
    tensors: Mapping[str, Any],
    path: str | os.PathLike,
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes tensors under a temporary name and renames the file, so that it is complete or absent."""
    from safetensors import SafetensorError
    from safetensors.flax import save_file

    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise ZooError(f"{str(path)!r} exists; remove it or choose another name")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: jax.numpy.asarray(tensor) for name, tensor in tensors.items()}, str(temporary), metadata)
        os.replace(temporary, path)
    except SafetensorError as error:  # a full disk, a read-only folder
        raise ZooError(f"could not write {str(path)!r}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def convert_torch(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Converts a torch state dict (`.pth`) to `.safetensors` with the same names; returns the number of tensors. Needs
    torch.

    It is read with `weights_only=True`: a file that contains code is refused, and the code is not run.
    """
    try:
        import torch
    except ImportError:
        raise ZooError("reading .pth files needs torch; install it with: pip install torch") from None
    if not pathlib.Path(source).is_file():
        raise ZooError(f"no file {str(source)!r}")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for foreign or hostile files
        raise ZooError(f"torch finds no plain weights in {str(source)!r}: {str(error).splitlines()[0]}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ZooError(f"{str(source)!r} holds no state dict of tensors")
    tensors = {}
    for name, tensor in state.items():
        if not torchvision.ignored(name):
            half = tensor.dtype == torch.bfloat16
            array = (tensor.float() if half else tensor).numpy()
            tensors[name.removeprefix("module.")] = array.astype(jax.numpy.bfloat16) if half else array
    write_safetensors(tensors, target)
    return len(tensors)


def nested(leaves: Mapping[tuple[str, ...], Any], template: Variables) -> Variables:
    """Leaves by path, in the structure of `template`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[tuple(key.key for key in path)], template)


def _bounded(leaves: Any, what: str) -> None:
    for leaf in jax.tree.leaves(leaves):
        if (size := math.prod(leaf.shape) * leaf.dtype.itemsize) > MOST_MADE:
            raise ZooError(f"{what} would take {size:,} bytes, more than {MOST_MADE:,}")


def _refuse_larger(files: list[pathlib.Path], most: int | None, path: str | os.PathLike) -> None:
    """A sparse file of zeros takes little space on disk but its full size in memory."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    if most is not None and size > most:
        raise ZooError(f"{str(path)!r} has {size:,} bytes, more than the {most:,} that this model can need")


def _initial_head(module: nn.Module, example: Example, head: str) -> dict[tuple[str, ...], Any]:
    args, kwargs = example

    def init(key: jax.Array) -> Any:
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), (args, kwargs))
        return module.init(key, *zeros[0], **zeros[1])["params"][head]

    drawn: Callable = jax.jit(init)  # compiled, so that XLA computes only the head
    return {("params", head, name): value for name, value in drawn(jax.random.key(0)).items()}


def _is_torch_file(path: str | os.PathLike) -> bool:
    return pathlib.Path(path).suffix in (".pth", ".pt", ".bin")


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
