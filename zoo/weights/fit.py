"""Tensors of a file in any layout as the variables of a module: each in its place, or an error that names it."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.partition import rules_of
from zoo.transformer.layers import unstacked
from zoo.weights import huggingface, native, recurrent, timm, torchvision
from zoo.weights.files import MOST_MADE, some
from zoo.weights.heads import unread_head
from zoo.weights.huggingface.layout import TensorLayout
from zoo.weights.names import Path
from zoo.weights.placing import placed

Variables = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Expected = Mapping[str, tuple[Path, Any]]


class Places(NamedTuple):
    """What the tensors of a file are to a module: leaves by path, and by name what does not fit."""

    leaves: dict[Path, Any]
    missing: list[str]
    unexpected: list[str]
    misfits: dict[str, str]  # with the reason


def fit(
    module: nn.Module,
    example: Example,
    template: Variables,
    tensors: Tensors,
    where: str,
    draw: bool = True,
    mesh: Mesh | None = None,
) -> Variables:
    """The variables of a module, on the devices of `mesh`; `where` names the source of the tensors in messages.

    A head, or a pooler, that the tensors do not have is drawn anew with a warning; without `draw` it is a ZooError,
    unless no output depends on it.
    """
    plain = jax.eval_shape(unstacked, template)  # the form of files: scanned stacks as separate layers
    layout = _layout(module, tensors, plain)
    try:
        tensors = layout.prepared(tensors, plain)
    except ValueError as error:
        raise ZooError(f"{where} does not fit {type(module).__name__}: {error}") from None
    expected = layout.names(plain)
    adapted = _adapt_first_kernel(example, tensors, expected, layout)
    found = _placed(module, tensors, expected, layout)
    family = layout if isinstance(layout, TensorLayout) else huggingface.layout_of(plain)
    heads = family.heads if family else ()
    if hasattr(module, "num_classes") and (own := (getattr(module, "head", ""),)) not in heads:
        heads = (*heads, own)
    if layout is native:
        expected_tops = {keys[1] for keys, _ in expected.values()}
        others = {name for group in heads for name in group} - expected_tops
        found = found._replace(unexpected=[name for name in found.unexpected if not others & {*name.split("/")[1:2]}])
    drawn, missing, misfits = _to_draw(module, found, tensors, expected, layout, heads)
    if missing or found.unexpected or misfits:
        problems = {
            "missing": found.missing,
            "unexpected": found.unexpected,
            "misshapen": [f"{name} ({why})" for name, why in sorted(found.misfits.items())],
        }
        report = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
        raise ZooError(f"{where} does not fit {type(module).__name__}: {report}")
    if adapted:
        warnings.warn(f"{where} is for images of {adapted}", stacklevel=3)
    leaves = found.leaves
    if isinstance(layout, TensorLayout):
        leaves = layout.leaves(leaves, plain)
    if drawn:
        _report(module, drawn, where, draw)
        _bounded([template["params"][name] for name in drawn], "a head drawn anew")
        leaves |= _initial(module, example, drawn)
    return placed(leaves, template, mesh, rules_of(module))


def _layout(module: nn.Module, tensors: Tensors, plain: Variables) -> Any:
    """The layout in which the most tensors of a file have a place in the model; the first of equal ones."""
    if native.is_native(tensors):
        return native
    others = [recurrent if recurrent.is_recurrent(tensors) else torchvision]
    known = [layout for layout in huggingface.LAYOUTS if layout.is_of(plain)] or others
    known += [layout for layout in timm.LAYOUTS if layout.is_of(plain)]
    found: list[Any] = [layout.of(module) if isinstance(layout, TensorLayout) else layout for layout in known]
    return found[0] if len(found) == 1 else max(found, key=lambda layout: layout.matches(tensors, plain))


def _placed(module: nn.Module, tensors: Tensors, expected: Expected, layout: Any) -> Places:
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
            misfits[name] = str(error)
    missing = sorted(set(expected) - set(tensors))
    others = set(tensors) - set(expected) - unread_head(module, layout)
    unexpected = sorted(name for name in others if not layout.ignored(name))
    return Places(leaves, missing, unexpected, misfits)


def _to_draw(
    module: nn.Module, found: Places, tensors: Tensors, expected: Expected, layout: Any, heads: tuple[Path, ...]
) -> tuple[list[str], list[str], dict[str, str]]:
    """The top-level modules to draw anew, and what is missing or misshapen beside them."""
    drawn, missing, misfits = [], found.missing, found.misfits
    for group in heads:
        names = [name for name, (keys, _) in expected.items() if keys[1] in group]
        if names and set(names) <= set(missing):
            drawn += sorted({expected[name][0][1] for name in names})
            missing = [name for name in missing if name not in names]
    head = getattr(module, "head", "")
    of_head = {name for name, (keys, _) in expected.items() if keys[:2] == ("params", head)}
    differs = of_head and set(misfits) == of_head
    if differs and all(layout.differs_in_classes(tensors[name], expected[name][1]) for name in misfits):
        drawn, misfits = [*drawn, head], {}
    return drawn, missing, misfits


def _report(module: nn.Module, drawn: list[str], where: str, draw: bool) -> None:
    """The warning about modules that are drawn anew; ZooError without `draw` if an output depends on them."""
    head, classes = getattr(module, "head", ""), getattr(module, "num_classes", None)
    named = f"the head {head!r} ({classes or 'other'})"
    what = " and ".join(named if name == head else repr(name) for name in sorted(drawn, key=lambda name: name != head))
    lacks = "no head for this number of classes" if head in drawn else f"no {' or '.join(drawn)}"
    unused = drawn == ["pooler"] and not classes
    if not draw and not unused:
        raise ZooError(f"{where} has {lacks}: {what} would be random numbers; give weights that have it")
    warnings.warn(f"{where} has {lacks}; {what} {'are' if len(drawn) > 1 else 'is'} drawn anew", stacklevel=4)


def _adapt_first_kernel(example: Example, tensors: Tensors, expected: Expected, layout: Any) -> str:
    """Brings the kernel that reads the images to their number of channels, if it differs in that alone; returns what
    changed, for the warning.

    As timm does: one channel gets the sum of all; more get the channels in turn, times the old number of them by the
    new one. Where the file's channels are repeated whole, a grey image gives the same activations.
    """
    images = example[0][0]
    if len(images.shape) != 4 or images.dtype.kind not in "fV":
        return ""
    channels, axis = images.shape[-1], 2 if layout is native else 1  # of a kernel's input channels

    def differs(name: str) -> bool:
        shape, ours = list(tensors[name].shape), list(layout.file_shape(expected[name][1]))
        if not len(shape) == len(ours) == 4 or ours[axis] != channels or not shape[axis]:
            return False
        return shape[axis] != channels and shape[:axis] + shape[axis + 1 :] == ours[:axis] + ours[axis + 1 :]

    kernels = [name for name in set(expected) & set(tensors) if differs(name)]
    if len(kernels) != 1:
        return ""
    kernel = tensors[kernels[0]]
    given, wide = kernel.shape[axis], kernel.astype(np.float32)
    if channels == 1:
        adapted, how = np.sum(wide, axis=axis, keepdims=True), "is adapted: summed over them"
    else:
        in_turn = np.take(wide, np.arange(channels) % given, axis=axis)
        adapted, how = in_turn * given / channels, f"is adapted: the channels in turn, times {given} / {channels}"
    tensors[kernels[0]] = adapted.astype(kernel.dtype)
    return f"{given} channels, not {channels}: its first kernel, {kernels[0]}, {how}"


def _bounded(leaves: Any, what: str) -> None:
    for leaf in jax.tree.leaves(leaves):
        if (size := math.prod(leaf.shape) * leaf.dtype.itemsize) > MOST_MADE:
            raise ZooError(f"{what} would take {size:,} bytes, more than {MOST_MADE:,}")


def _initial(module: nn.Module, example: Example, names: list[str]) -> dict[Path, Any]:
    """The initial leaves of top-level modules and arrays, by path."""
    args, kwargs = example

    def init(key: jax.Array) -> Any:
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), (args, kwargs))
        params = module.init(key, *zeros[0], **zeros[1])["params"]
        return {"params": {name: params[name] for name in names}}

    drawn: Callable = jax.jit(init)  # compiled, so that XLA computes only these
    leaves = jax.tree_util.tree_leaves_with_path(drawn(jax.random.key(0)))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}
