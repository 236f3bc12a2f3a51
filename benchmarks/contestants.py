"""A contestant: a compiled step or forward pass of ours or of a peer, ready to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.problems import Problem
from benchmarks.timer import first_call


class Update(NamedTuple):
    """An optimizer at a constant learning rate."""

    optimizer: str  # adam or sgd
    learning_rate: float


class Contestant(NamedTuple):
    """A callable that returns the loss of a step, or the logits of a forward pass, and what is known of it."""

    work: Callable[[], Any]
    losses: tuple[float, ...]  # of the first two calls: at step 0 and after one update
    parameters: int
    compile_seconds: float | None  # tracing and compiling; None if nothing is compiled
    temporary_bytes: int | None = None  # of the compiled program; None if unknown
    layout: str = ""  # memory layout of images, NCHW or NHWC


def contestant(
    work: Callable[[], Any],
    problem: Problem,
    parameters: int,
    between: Callable[[], None] = lambda: None,
    **fields: Any,
) -> Contestant:
    """A contestant after two calls of `work`; the compile time is by default the extra seconds of the first call."""
    first, slow = first_call(work)
    between()
    second, fast = first_call(work)
    losses = mean_loss(first, problem.targets), mean_loss(second, problem.targets)
    return Contestant(work, losses, parameters, **{"compile_seconds": max(slow - fast, 0.0), **fields})


def mean_loss(result: Any, targets: np.ndarray) -> float:
    """A loss unchanged; for logits [..., V] the mean cross-entropy of the `targets` [...] that are not -1."""
    if isinstance(result, float):
        return result
    if hasattr(result, "cpu"):  # PyTorch's
        result = result.float().cpu()
    logits, counted = np.asarray(result, np.float64), targets >= 0
    logits, right = logits[counted], targets[counted]
    most = logits.max(-1)
    return float(np.mean(np.log(np.exp(logits - most[:, None]).sum(-1)) + most - logits[np.arange(len(right)), right]))


def of_jax(
    program: Any,
    state: Any,
    args: tuple,
    problem: Problem,
    parameters: int,
    read: Callable[[Any], float] | None = None,
    again: Callable[[Any], Any] = lambda state: state,
) -> Contestant:
    """The contestant of a jitted program, which is compiled here, ahead of its first call.

    A step is (state, *args) -> (state, result), and `read` gives the loss of its result. Without `read` the program is
    a forward pass (state, *args) -> logits. Before the second call the state passes through `again`.
    """
    compiled, seconds = first_call(lambda: program.lower(state, *args).compile())
    temporary = compiled.memory_analysis().temp_size_in_bytes or None

    def work() -> Any:
        nonlocal state
        if read is None:
            return jax.block_until_ready(compiled(state, *args))
        state, result = jax.block_until_ready(compiled(state, *args))
        return read(result)

    def between() -> None:
        nonlocal state
        state = again(state)

    return contestant(work, problem, parameters, between, compile_seconds=seconds, temporary_bytes=temporary)
