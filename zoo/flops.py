"""Floating-point operations of a function, counted from its jaxpr.

Only matrix products and convolutions count, two operations per multiply-add, times the length of a scan, the grid of a
kernel, the devices of a `shard_map`. XLA's own cost analysis counts the body of a loop once and a kernel not at all,
and it changes with the compiler; this count depends on the arithmetic alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one call of `function`; arguments may be arrays or `jax.ShapeDtypeStruct`s, nothing is computed.

    A `while` of unknown length counts one iteration; a `cond` counts its most expensive branch; a Pallas kernel that
    skips blocks counts all of them.
    """
    return _jaxpr_flops(jax.make_jaxpr(lambda *a: function(*a, **kwargs))(*args).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    shape, out = _shapes(equation.invars), _shapes(equation.outvars)
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        return 2 * math.prod(out[0]) * math.prod(shape[0][axis] for axis in contracting)
    if name == "conv_general_dilated":
        axes = params["dimension_numbers"].rhs_spec[1:]  # input features of a group, window
        per_output = math.prod(shape[1][axis] for axis in axes)
        # A dilated input (the gradient of a strided convolution) is mostly zeros, which need no multiplication.
        return 2 * math.prod(out[0]) * per_output // math.prod(params["lhs_dilation"])
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * _rounds(name, params)


def _rounds(name: str, params: dict[str, Any]) -> int:
    """How many times an equation runs its inner jaxpr."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        axes = next(value for key, value in params.items() if key.endswith("manual_axes"))  # "newly_" since JAX 0.10
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [getattr(variable.aval, "shape", ()) for variable in variables]


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
