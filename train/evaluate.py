"""A model on a split, every example counted once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from train.forward import Forward
from train.records import add_sums
from train.sharding import Layout
from train.tasks.task import Extra
from zoo import partition
from zoo.inputs import Inputs
from zoo.run import Run

Passing = Callable[[int, int], None]


class Evaluator:
    """Compiles what evaluations of one model need, once, and runs it over splits.

    `batch_size` is the number of examples at a time, over all devices.
    """

    def __init__(self, task: Any, model: nn.Module, inputs: Inputs, layout: Layout, batch_size: int):
        self.task, self.model, self.inputs, self.layout, self.batch_size = task, model, inputs, layout, batch_size
        self._adapted = layout.adapt(model)
        self._sums = layout.compile_eval(make_eval_step(task, self._adapted, inputs, layout.axis_name))
        self._collecting: dict[Any, Any] = {}

    def __call__(self, variables: Any, split: Any, final: bool, passing: Passing) -> dict[str, float]:
        """The task's metrics of placed `variables` on a split.

        `passing(done, total)` is called before each batch; what it raises ends the evaluation.
        """
        return self.task.evaluate(Evaluation(self, variables, final, passing), split)

    def sums(self, variables: Any, split: Any, passing: Passing) -> dict[str, Any]:
        totals: dict[str, Any] = {}
        waiting: list[Any] = []
        carry = self.layout.put_rows(self.task.carry(self.model, self.batch_size))
        for batch in self._batches(split, passing):
            sums, carry = self._sums(variables, carry, batch)
            waiting.append(sums)
            if len(waiting) > self.layout.bounded - 1:
                add_sums(totals, self.layout.fetch(waiting.pop(0)))
        for sums in waiting:
            add_sums(totals, self.layout.fetch(sums))
        return totals

    def collect(self, outputs: Callable, variables: Any, split: Any, passing: Passing) -> dict[str, np.ndarray]:
        if outputs not in self._collecting:
            rules = partition.rules_of(self.model)

            def step(variables: Any, batch: Any) -> Any:
                return outputs(Forward(self._adapted, self.inputs, partition.gathered(variables, rules)), batch)

            self._collecting[outputs] = self.layout.compile_rows(step)
        step, found = self._collecting[outputs], []
        for batch in self._batches(split, passing):
            found.append(self.layout.fetch_rows(step(variables, batch)))
        return {name: np.concatenate([part[name] for part in found])[: split.size] for name in found[0]}

    def _batches(self, split: Any, passing: Passing) -> Any:
        total = split.eval_steps(self.batch_size)
        for done, batch in enumerate(split.eval_batches(self.batch_size, self.layout.rows(self.batch_size))):
            passing(done, total)
            yield self.layout.put_batch(batch)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, as `Task.evaluate` gets it."""

    _evaluator: Evaluator
    _variables: Any
    final: bool  # whether training has ended, so that costly metrics are due
    _passing: Passing

    @property
    def inputs(self) -> Any:
        return self._evaluator.inputs

    def sums(self, split: Any) -> dict[str, Any]:
        """`Loss.sums`, with `count`, added up over the split, every example exactly once: floats and NumPy arrays."""
        return self._evaluator.sums(self._variables, split, self._passing)

    def collect(self, outputs: Callable, split: Any) -> dict[str, np.ndarray]:
        """The arrays [n, ...] that the pure function `outputs(forward, batch) -> {name: [B, ...]}` gives of all n
        examples of a split of examples, in its order, each once; the same in every process."""
        return self._evaluator.collect(outputs, self._variables, split, self._passing)

    def run(self) -> Run:
        """The model, its variables as NumPy arrays, and its inputs."""
        return Run(self._evaluator.model, self._evaluator.layout.fetch(self._variables), self.inputs)


def make_eval_step(task: Any, model: nn.Module, inputs: Inputs, axis_name: str | None = None) -> Callable:
    """The pure function (variables, carry, batch) -> (sums over examples of weight 1, carry)."""

    rules = partition.rules_of(model)

    def eval_step(variables: Any, carry: Any, batch: Any) -> tuple[Any, Any]:
        forward = Forward(model, inputs, partition.gathered(variables, rules))
        loss = task.loss(forward, batch, Extra(carry), jax.random.key(0), train=False)
        sums = {**loss.sums, "count": loss.count}
        return (sums if axis_name is None else jax.lax.psum(sums, axis_name)), loss.carry

    return eval_step
