"""What is timed: a compiled step or forward pass of ours or of a peer, after its first call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.problems import Problem
from benchmarks.timer import first_call


class Update(NamedTuple):
    """A plain optimizer at a constant rate."""

    optimizer: str  # adam or sgd
    learning_rate: float


class Contestant(NamedTuple):
    """What is timed: a call that ends with the loss of a step, or with the logits."""

    work: Callable[[], Any]
    loss: float  # of the first call, at step 0
    parameters: int
    first_seconds: float  # of the first call: compiling and one run
    temporary_bytes: float = float("nan")  # of the compiled program; where it does not say, nan
    layout: str = ""  # of images in memory


def contestant(work: Callable[[], Any], problem: Problem, parameters: int, **fields: Any) -> Contestant:
    """`work` after its first call."""
    result, seconds = first_call(work)
    return Contestant(work, mean_loss(result, problem.targets), parameters, seconds, **fields)


def mean_loss(result: Any, targets: np.ndarray) -> float:
    """A loss as it is; of logits [..., V] the cross-entropy of those `targets` [...] that are not -1."""
    if not np.ndim(result):
        return float(result)
    logits, told = np.asarray(result, np.float64), targets >= 0
    logits, right = logits[told], targets[told]
    most = logits.max(-1)
    return float(np.mean(np.log(np.exp(logits - most[:, None]).sum(-1)) + most - logits[np.arange(len(right)), right]))


def of_jax(
    program: Any, state: Any, args: tuple, problem: Problem, parameters: int, read: Callable[[Any], Any] | None = None
) -> Contestant:
    """Of a jitted step (state, *args) -> (state, what `read` finds the loss in), or without `read` of a forward pass
    (state, *args) -> logits."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, *args))

    def work() -> Any:
        nonlocal state
        if read is None:
            return jax.block_until_ready(program(state, *args))
        state, result = jax.block_until_ready(program(state, *args))
        return read(result)

    found = contestant(work, problem, parameters)
    memory: Any = program.lower(*abstract).compile().memory_analysis()
    return found._replace(temporary_bytes=memory.temp_size_in_bytes)
