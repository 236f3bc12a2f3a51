"""Floating-point operations of a function, counted from its jaxpr.

Matrix products and convolutions only, two a multiply-add, times a scan's length, a kernel's grid, the devices of a
`shard_map`. XLA's own cost analysis counts a loop's body once and a kernel not at all, and what it counts changes with
the compiler; this count depends on the arithmetic alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one call of `function`; arguments may be arrays or `jax.ShapeDtypeStruct`s, nothing is computed.

    A `while` of unknown length counts one round; of a `cond`, the most expensive branch: of a Pallas kernel that skips
    blocks, all of them.
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
        axes = params["dimension_numbers"].rhs_spec[1:]  # a group's input features, the window
        per_output = math.prod(shape[1][axis] for axis in axes)
        # A dilated input (the gradient of a strided convolution) is mostly zeros that nobody has to multiply.
        return 2 * math.prod(out[0]) * per_output // math.prod(params["lhs_dilation"])
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * _rounds(name, params)


def _rounds(name: str, params: dict[str, Any]) -> int:
    """How often an equation does what is inside."""
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
