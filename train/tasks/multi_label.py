"""Multi-label classification: each label by itself, by binary cross-entropy."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import AugmentConfig, augmented
from train.data.source import Dataset, Split
from train.forward import Forward
from train.tasks.classification import predict_command
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """A label is predicted where its logit is above 0, that is at a probability above one half."""

    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)  # of images

    metric: ClassVar[str] = "f1"
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    @property
    def mixes_examples(self) -> bool:
        return self.augment.mixes

    def check(self) -> None:
        self.augment.check()

    def check_model(self, model: type[nn.Module]) -> None:
        parts = getattr(model, "segments", False) or getattr(model, "detects", False)  # of images have classes
        if not hasattr(model, "num_classes") or parts:
            raise ZooError(f"{model.__name__} is no classifier of whole examples")

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        return augmented(self.augment, key, batch, "labels"), state.extra

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Binary cross-entropy in nats, the mean over labels; `right`, `predicted` and `actual` count by label."""
        args, kwargs = forward.inputs.arguments(batch)
        logits = forward(*args, train=train, **kwargs).astype(jnp.float32)
        labels, weight = batch["labels"], batch["weight"][:, None]
        target = labels
        if "share" in batch:
            share = batch["share"][:, None]
            target = share * labels + (1 - share) * batch["other_labels"]
        losses = jax.nn.softplus(logits) - target * logits
        predicted = (logits > 0).astype(jnp.float32)
        total = jnp.sum(losses * weight) / logits.shape[-1]
        sums = {
            "loss": total,
            "exact": jnp.sum(jnp.all(predicted == labels, axis=-1) * batch["weight"]),
            "right": jnp.sum(predicted * labels * weight, axis=0),
            "predicted": jnp.sum(predicted * weight, axis=0),
            "actual": jnp.sum(labels * weight, axis=0),
        }
        return Loss(total, jnp.sum(batch["weight"]), sums)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The loss; `f1` over all labels together (micro), `macro_f1`, its mean over labels; `exact_match`, the share
        of examples with all labels right."""
        right, both = np.asarray(sums["right"]), np.asarray(sums["predicted"]) + np.asarray(sums["actual"])
        return {
            "loss": sums["loss"] / sums["count"],
            "f1": float(2 * right.sum() / max(both.sum(), 1)),
            "macro_f1": float(np.mean(2 * right / np.maximum(both, 1))),
            "exact_match": sums["exact"] / sums["count"],
        }

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """`metrics`, and `mean_average_precision` over the labels that the split has."""
        from sklearn.metrics import average_precision_score

        found = evaluation.collect(self._probabilities, split)
        labels = found["labels"].astype(int)
        present = labels.any(axis=0)
        precision = average_precision_score(labels[:, present], found["probabilities"][:, present], average="macro")
        return {**super().evaluate(evaluation, split), "mean_average_precision": float(precision)}

    def _probabilities(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        args, kwargs = forward.inputs.arguments(batch)
        return {
            "probabilities": jax.nn.sigmoid(forward(*args, **kwargs).astype(jnp.float32)),
            "labels": batch["labels"],
        }

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["mean_average_precision"]

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        return predict_command(run, dataset, workdir)
