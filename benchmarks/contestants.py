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
    losses: tuple[float, ...]  # of the first two calls: at step 0, and after one update
    parameters: int
    compile_seconds: float | None  # of tracing and compiling; None where nothing is compiled
    temporary_bytes: int | None = None  # of the compiled program; None where the compiler does not say
    layout: str = ""  # of images in memory


def contestant(
    work: Callable[[], Any],
    problem: Problem,
    parameters: int,
    between: Callable[[], None] = lambda: None,
    **fields: Any,
) -> Contestant:
    """`work` after two calls. Seconds to compile, where `fields` do not say, are those that the first took more."""
    first, slow = first_call(work)
    between()
    second, fast = first_call(work)
    losses = mean_loss(first, problem.targets), mean_loss(second, problem.targets)
    return Contestant(work, losses, parameters, **{"compile_seconds": max(slow - fast, 0.0), **fields})


def mean_loss(result: Any, targets: np.ndarray) -> float:
    """A loss as it is; of logits [..., V] the cross-entropy of those `targets` [...] that are not -1."""
    if isinstance(result, float):
        return result
    if hasattr(result, "cpu"):  # PyTorch's
        result = result.float().cpu()
    logits, told = np.asarray(result, np.float64), targets >= 0
    logits, right = logits[told], targets[told]
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
    """Of a jitted step (state, *args) -> (state, what `read` finds the loss in), or without `read` of a forward pass
    (state, *args) -> logits. It is compiled here, once, ahead of its first call; its second begins from what `again`
    makes of the first's state."""
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
