"""Floating-point operations of a function, counted from its jaxpr.

Matrix products and convolutions only, two a multiply-add, times a scan's length. XLA's own cost analysis counts a
loop's body once, and what it counts changes with the compiler; this count depends on the arithmetic alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one call of `function`; arguments may be arrays or `jax.ShapeDtypeStruct`s, nothing is computed.

    A `while` of unknown length counts one round; of a `cond`, the most expensive branch.
    """
    return _jaxpr_flops(jax.make_jaxpr(lambda *a: function(*a, **kwargs))(*args).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracting)
    if name == "conv_general_dilated":
        kernel, kernel_axes = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        per_output = math.prod(kernel[axis] for axis in kernel_axes[1:])  # input features of a group, window
        # A dilated input (the gradient of a strided convolution) is mostly zeros that nobody has to multiply.
        return 2 * math.prod(equation.outvars[0].aval.shape) * per_output // math.prod(params["lhs_dilation"])
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
