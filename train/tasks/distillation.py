"""Knowledge distillation: learn from labels and from a teacher's probabilities (Hinton et al. 2015)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from train.data.source import Dataset
from train.settings import at_least
from train.tasks.classification import Classification
from train.tasks.task import Batch
from zoo.errors import ZooError
from zoo.run import Run


@dataclasses.dataclass(frozen=True)
class Distillation(Classification):
    """The loss is (1 - alpha) cross-entropy + alpha T^2 KL(teacher, student), both softmaxes at temperature T.

    T^2 keeps the gradient of the second part at the size of the first's (section 2). The teacher sees the augmented
    examples, in evaluation mode; its weights are constants, read again on resume.
    """

    teacher: str = ""  # a run folder, or the name of a model whose weights come with the zoo
    temperature: float = 4.0  # by which both models' logits are divided
    alpha: float = 0.9  # the teacher's share of the loss; 0 trains on labels alone

    @functools.cached_property
    def teacher_run(self) -> Run:
        """The teacher: model, variables, inputs."""
        if not self.teacher:
            raise ZooError("task.teacher must name a run folder, or a model whose weights come with the zoo")
        return zoo.load(self.teacher)

    def check(self) -> None:
        super().check()
        if not self.temperature > 0:
            raise ZooError(f"task.temperature must be above 0, not {self.temperature}")
        at_least("task.alpha", self.alpha, 0)
        if self.alpha > 1:
            raise ZooError(f"task.alpha must be at most 1, not {self.alpha}")

    def check_data(self, dataset: Dataset) -> None:
        super().check_data(dataset)
        theirs, ours = self.teacher_run.inputs, dataset.inputs
        if (theirs.kind, theirs.shape, theirs.labels) != (ours.kind, ours.shape, ours.labels):
            raise ZooError(
                f"task.teacher {self.teacher!r} takes {theirs.kind}s of {theirs.shape} with {len(theirs.labels)} "
                f"labels, but {dataset.name} has {ours.kind}s of {ours.shape} with {len(ours.labels)}; all must agree"
            )

    def constants(self, dataset: Dataset) -> dict[str, Any]:
        return {**super().constants(dataset), "teacher": self.teacher_run.variables}

    def losses(self, logits: jax.Array, batch: Batch, constants: Mapping[str, Any], train: bool) -> jax.Array:
        losses = super().losses(logits, batch, constants, train)
        if not train or not self.alpha:
            return losses
        model, _, inputs = self.teacher_run
        args, kwargs = inputs.arguments(batch)
        taught = jnp.asarray(model.apply(constants["teacher"], *args, **kwargs), jnp.float32) / self.temperature
        student = jax.nn.log_softmax(logits.astype(jnp.float32) / self.temperature)
        divergence = jnp.sum(jax.nn.softmax(taught) * (jax.nn.log_softmax(taught) - student), axis=-1)
        return (1 - self.alpha) * losses + self.alpha * self.temperature**2 * divergence
