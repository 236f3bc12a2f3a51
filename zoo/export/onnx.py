"""Programs as ONNX files, by jax2onnx, each checked with onnxruntime before it is kept."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import numpy as np
from jax import export

from zoo.errors import ZooError, first_line
from zoo.ops.portable import portable

OPSET = 23  # jax2onnx's default, which onnxruntime reads from 1.23 on
TOLERANCE = 1e-4  # of the largest value
SIZES = (2, 3)  # of the batch and the length with which a file is checked, and again the other way round


def convert(function: Callable[..., Any], arguments: dict[str, Any], largest: dict[str, int]) -> tuple[bytes, float]:
    """A function of arrays as an ONNX model whose inputs have these names and whose free sizes are dynamic axes, and
    its largest error, relative to the largest value, in onnxruntime. `arguments` are abstract; integers of the check
    are below `largest`, by name.

    Linen's layers are converted as jax2onnx does them, or else the operations that they are traced to. ZooError where
    neither works, or the result is wrong by more than TOLERANCE.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise ZooError(f"{error}; ONNX needs an environment with: pip install 'flaxzoo[onnx]'") from None
    onnxruntime.set_default_logger_severity(3)  # errors alone, not advice on the graph
    problems = []
    abstract = list(arguments.values())
    for route in (lambda: function, lambda: _traced(function, abstract)):
        try:
            with portable():
                model = jax2onnx.to_onnx(route(), abstract, opset=OPSET, input_names=list(arguments))
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            wrong = max(_error(session, function, arguments, largest, sizes) for sizes in (SIZES, SIZES[::-1]))
        except Exception as problem:  # whatever an operation without a converter raises
            problems.append(first_line(problem))
            continue
        if wrong <= TOLERANCE:
            return content, wrong
        problems.append(f"wrong by {wrong:.1g}")
    raise ZooError(f"jax2onnx does not convert it: {'; '.join(dict.fromkeys(problems))}")


def _traced(function: Callable[..., Any], abstract: list[Any]) -> Callable[..., Any]:
    """The function as its operations, without modules that jax2onnx replaces."""
    return jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(function)(*abstract))


def arrays_of(arguments: dict[str, Any], largest: dict[str, int], sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays to check with: normal numbers, or whole ones from 1 to below `largest`; free sizes by their place."""
    rng, found = np.random.default_rng(0), {}
    for name, leaf in arguments.items():
        free = iter(sizes)
        shape = [next(free) if export.is_symbolic_dim(size) else size for size in leaf.shape]
        whole = np.issubdtype(leaf.dtype, np.integer)
        found[name] = (rng.integers(1, largest[name], shape) if whole else rng.normal(size=shape)).astype(leaf.dtype)
    return found


def _error(
    session: Any, function: Callable[..., Any], arguments: dict[str, Any], largest: dict[str, int], sizes: Any
) -> float:
    arrays = arrays_of(arguments, largest, sizes)
    expected = np.asarray(function(*arrays.values()))
    wanted = {given.name for given in session.get_inputs()}
    (found,) = session.run(None, {name: array for name, array in arrays.items() if name in wanted})
    if found.shape != expected.shape:
        raise ValueError(f"its result is {found.shape}, not {expected.shape}")
    return float(np.abs(found - expected).max() / np.abs(expected).max())
