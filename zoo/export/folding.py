"""Batch normalisation without its statistics: in the kernel before it, or else as one scale and one shift.

Of a norm whose input is the output of a convolution or dense layer and goes nowhere else, scale / sqrt(var + epsilon)
is multiplied into the kernel's output channels, and what is left of the norm is a bias. Whether that holds is read from
a trace of the model. Any other norm, as before an activation in DenseNet, becomes x * scale + shift.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.registry import abstract_variables

KERNEL, NORM = "kernel of ", "norm of "  # what a value in a trace is the output, or the input, of


class Folded(NamedTuple):
    """`apply(variables, *args, **kwargs)` is the model's, with variables that have no statistics."""

    apply: Callable[..., Any]
    variables: Mapping[str, Any]
    kernels: tuple[str, ...]  # norms that are in a kernel, by path
    scales: tuple[str, ...]  # norms that are a scale and a shift


def fold(model: nn.Module, variables: Mapping[str, Any], example: Example) -> Folded:
    """The model without batch normalisation, for inference: equal to the model with `train=False` but for rounding.

    `example` are abstract arguments of the model, as `Inputs.example` gives them; no value is computed with them. The
    sums are float64. ZooError if a norm has no running statistics among the variables.
    """
    norms, pairs = _traced(model, example)
    kept = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    kept["params"] = params = jax.tree.map(lambda leaf: leaf, dict(variables["params"]))  # dicts of its own
    added: set[tuple[str, ...]] = set()
    for path, epsilon in norms.items():
        scale, shift = _affine(variables, path, epsilon)
        if path not in pairs:
            _put(params, path, {"scale": scale, "bias": shift})
            continue
        layer = dict(_at(params, pairs[path]))
        before = np.asarray(layer.get("bias", 0), np.float64)
        kernel = np.asarray(layer["kernel"], np.float64) * scale
        _put(params, pairs[path], {**layer, "kernel": kernel, "bias": before * scale + shift})
        _put(params, path, {})
        if "bias" not in layer:
            added.add(pairs[path])
    dtype = jax.tree.leaves(variables["params"])[0].dtype
    kept["params"] = jax.tree.map(lambda leaf: np.asarray(leaf, dtype if leaf.dtype == np.float64 else None), params)
    names = tuple("/".join(path) for path in norms if path in pairs)
    rest = tuple("/".join(path) for path in norms if path not in pairs)
    return Folded(_applied(model, pairs, added), kept, names, rest)


def _applied(
    model: nn.Module, pairs: Mapping[tuple[str, ...], tuple[str, ...]], added: set[tuple[str, ...]]
) -> Callable[..., Any]:
    """`model.apply` for folded variables."""

    def apply(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        def call(next_call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or not isinstance(module, nn.BatchNorm | nn.Conv | nn.Dense):
                return next_call(*arguments, **keywords)
            if not isinstance(module, nn.BatchNorm):
                y = next_call(*arguments, **keywords)
                return y + _at(variables["params"], module.path)["bias"].astype(y.dtype) if module.path in added else y
            (x,) = arguments
            if module.path in pairs:
                return x
            scale, shift = (_at(variables["params"], module.path)[name] for name in ("scale", "bias"))
            return (x * scale + shift).astype(module.dtype or x.dtype)

        with nn.intercept_methods(call):
            return model.apply(variables, *args, **kwargs)

    return apply


def _traced(
    model: nn.Module, example: Example
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], tuple[str, ...]]]:
    """The epsilon of every norm by its path, and the path of the layer into whose kernel it can go."""
    norms: dict[tuple[str, ...], float] = {}
    calls: Counter[str] = Counter()

    def call(next_call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        path = "/".join(module.path)
        if context.method_name == "__call__" and isinstance(module, nn.BatchNorm):
            if module.path in norms:  # the call of the class that ours is derived from
                return next_call(*arguments, **keywords)
            norms[module.path] = module.epsilon
            return next_call(checkpoint_name(arguments[0], NORM + path), *arguments[1:], **keywords)
        y = next_call(*arguments, **keywords)
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense):
            calls[path] += 1
            return checkpoint_name(y, KERNEL + path)
        return y

    def apply(variables: Any, args: Any, kwargs: Any) -> Any:
        with nn.intercept_methods(call):
            return model.apply(variables, *args, **kwargs)

    trace = jax.make_jaxpr(apply)(abstract_variables(model, *example), *example)
    pairs = dict(_pairs(trace.jaxpr))
    once = {norm: layer for norm, layer in pairs.items() if calls["/".join(layer)] == 1}
    return norms, once


def _pairs(jaxpr: Any) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The paths of norms and of the layers whose output they alone read."""
    readers: dict[Any, list[str]] = {var: [""] for var in jaxpr.outvars if not isinstance(var, Literal)}
    made: dict[Any, str] = {}
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "") if equation.primitive.name == "name" else ""
        for var in equation.invars:
            if not isinstance(var, Literal):
                readers.setdefault(var, []).append(name)
        if name.startswith(KERNEL):
            made[equation.outvars[0]] = name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _pairs(getattr(inner, "jaxpr", inner))
    for var, layer in made.items():
        if len(found := readers.get(var, [])) == 1 and found[0].startswith(NORM):
            norm = found[0].removeprefix(NORM)
            yield tuple(norm.split("/")), tuple(layer.removeprefix(KERNEL).split("/"))


def _affine(variables: Mapping[str, Any], path: tuple[str, ...], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """A norm as x * scale + shift, float64 [C]."""
    try:
        own = _at(variables["batch_stats"], path)
        mean, variance = (np.asarray(own[name], np.float64) for name in ("mean", "var"))
    except KeyError:
        raise ZooError(f"the norm {'/'.join(path)} has no running mean and var in batch_stats") from None
    params = _at(variables["params"], path, {})
    scale = np.asarray(params.get("scale", 1), np.float64) / np.sqrt(variance + epsilon)
    return scale, np.asarray(params.get("bias", 0), np.float64) - mean * scale


def _at(tree: Any, path: tuple[str, ...], default: Any = None) -> Any:
    for key in path:
        if default is not None and key not in tree:
            return default
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
