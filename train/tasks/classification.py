"""Classification of images and texts: cross-entropy, accuracy and per-class metrics."""

import dataclasses
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import AugmentConfig, augmented
from train.data.source import Dataset, Split
from train.forward import Forward
from train.report import images as images_report
from train.settings import Arguments
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError, unknown
from zoo.registry import fits
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation

TOP = 5  # of top5: the share of examples whose label is among so many most probable classes


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    label_smoothing: float = 0.0  # probability mass spread evenly over all classes, in training
    test_flip: bool = False  # evaluate the mean of the logits of an image and its mirror image
    class_weights: Arguments = dataclasses.field(default_factory=dict)  # of the training loss, by label: cat=2 dog=0.5
    balance_classes: bool = False  # weigh each class by one over its share of the training examples
    # more metrics of every evaluation: top5 accuracy; precision, recall and f1 (means over classes; per_class adds
    # those of each class); auc, the area under the ROC curve of each class against the rest (mean over classes)
    extra_metrics: list[Literal["top5", "precision", "recall", "f1", "per_class", "auc"]] = dataclasses.field(
        default_factory=list
    )
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)  # of images

    metric: ClassVar[str] = "accuracy"
    needs: ClassVar[tuple[str, ...]] = ("label",)

    @property
    def mixes_examples(self) -> bool:
        return self.augment.mixes

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ZooError(f"task.label-smoothing must be in [0, 1), not {self.label_smoothing}")
        for label, weight in self.class_weights.items():
            if not (fits(weight, float) and math.isfinite(weight) and weight > 0):
                raise ZooError(f"task.class-weights {label} must be a number above 0, not {weight!r}")
        if self.class_weights and self.balance_classes:
            raise ZooError("task.balance-classes computes the weights that task.class-weights gives; set one of them")
        self.augment.check()

    def check_model(self, model: type[nn.Module]) -> None:
        parts = getattr(model, "segments", False) or getattr(model, "detects", False)  # of images have classes
        if not hasattr(model, "num_classes") or parts:
            raise ZooError(f"{model.__name__} is no classifier of whole examples")

    def check_data(self, dataset: Dataset) -> None:
        super().check_data(dataset)
        if dataset.inputs.kind != "image" and (self.augment != AugmentConfig() or self.test_flip):
            raise ZooError(f"task.augment and task.test-flip are for images; {dataset.name} has {dataset.inputs.kind}s")
        for label in self.class_weights:
            if label not in dataset.inputs.labels:
                raise unknown("label in task.class-weights", label, dataset.inputs.labels)
        if self.balance_classes and dataset.train.labels is None:
            raise ZooError(f"task.balance-classes counts labels in memory; {dataset.name} has none: use class-weights")

    def constants(self, dataset: Dataset) -> dict[str, Any]:
        """`class_weights` float32 [classes], where classes do not weigh the same."""
        labels = dataset.inputs.labels
        if self.balance_classes:
            found = dataset.train.labels
            counts = np.bincount(found, minlength=len(labels))
            return {"class_weights": (len(found) / np.maximum(len(labels) * counts, 1)).astype(np.float32)}
        if self.class_weights:
            return {"class_weights": np.array([self.class_weights.get(label, 1.0) for label in labels], np.float32)}
        return {}

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        return augmented(self.augment, key, batch, "label"), state.extra

    def logits(self, forward: Forward, batch: Batch, train: bool) -> jax.Array:
        """[B, classes]; in evaluation float32, with `test_flip` a mean over an image and its mirror image."""
        args, kwargs = forward.inputs.arguments(batch)
        logits = forward(*args, train=train, **kwargs)
        if train:
            return logits
        logits = jnp.asarray(logits, jnp.float32)
        if self.test_flip:
            mirrored = forward(args[0][:, :, ::-1], **kwargs)
            logits = (logits + jnp.asarray(mirrored, jnp.float32)) / 2
        return logits

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """The sum of `losses`. The accuracy of a mixed example is by its own label.

        With class weights the total is weighted and `count` is the sum of the weights, so that the gradient is that of
        a weighted mean.
        """
        logits = self.logits(forward, batch, train)
        labels, weight = batch["label"], batch["weight"]
        constants = extra.constants or {}
        losses = self.losses(logits, batch, constants, train)
        right = jnp.argmax(logits, axis=-1) == labels
        sums = {"loss": jnp.sum(losses * weight), "accuracy": jnp.sum(right * weight)}
        if "class_weights" in constants:
            weighted = weight * self._weights(constants["class_weights"], batch)
            sums |= {"loss": jnp.sum(losses * weighted), "examples": jnp.sum(weight)}
            return Loss(sums["loss"], jnp.sum(weighted), sums)
        if not train:
            sums |= self._evaluation_sums(logits, labels, weight)
        return Loss(sums["loss"], jnp.sum(weight), sums)

    def losses(self, logits: jax.Array, batch: Batch, constants: Mapping[str, Any], train: bool) -> jax.Array:
        """The loss [B] of each example, float32: cross-entropy in nats, shared between both labels of a mixed one."""
        return cross_entropy(logits, self.target(batch, logits.shape[-1], train))

    def _weights(self, by_class: jax.Array, batch: Batch) -> jax.Array:
        weights = by_class[batch["label"]]
        if "share" in batch:
            weights = batch["share"] * weights + (1 - batch["share"]) * by_class[batch["other_label"]]
        return weights

    def target(self, batch: Batch, classes: int, train: bool) -> jax.Array:
        """The probabilities [B, classes] to learn, mixed and smoothed in training."""
        target = jax.nn.one_hot(batch["label"], classes)
        if "share" in batch:
            share = batch["share"][:, None]
            target = share * target + (1 - share) * jax.nn.one_hot(batch["other_label"], classes)
        if train and self.label_smoothing:
            target = (1 - self.label_smoothing) * target + self.label_smoothing / classes
        return target

    def _evaluation_sums(self, logits: jax.Array, labels: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
        sums, classes = {}, logits.shape[-1]
        if "top5" in self.extra_metrics:
            _, best = jax.lax.top_k(logits, min(TOP, classes))
            sums["top5"] = jnp.sum(jnp.any(best == labels[:, None], axis=-1) * weight)
        if {"precision", "recall", "f1", "per_class"} & {*self.extra_metrics}:
            right = jax.nn.one_hot(labels, classes) * weight[:, None]
            sums["confusion"] = right.T @ jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)
        return sums

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Means over examples."""
        examples = sums.get("examples", sums["count"])
        metrics = {"loss": sums["loss"] / sums["count"], "accuracy": sums["accuracy"] / examples}
        if "top5" in sums:
            metrics["top5"] = sums["top5"] / examples
        return metrics

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """The means, and what `extra_metrics` names."""
        sums = evaluation.sums(split)
        metrics = self.metrics(sums)
        if "confusion" in sums:
            for name, values in per_class(sums["confusion"]).items():
                if name in self.extra_metrics:
                    metrics[name] = float(values.mean())
                if "per_class" in self.extra_metrics:
                    labels = evaluation.inputs.labels
                    metrics |= {f"{name}/{label}": float(v) for label, v in zip(labels, values, strict=True)}
        if "auc" in self.extra_metrics:
            found = evaluation.collect(self._probabilities, split)
            metrics["auc"] = area_under_curve(found["probabilities"], found["label"])
        return metrics

    def _probabilities(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        return {"probabilities": jax.nn.softmax(self.logits(forward, batch, train=False)), "label": batch["label"]}

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["accuracy"]

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return images_report.draw(run, dataset, options, self.metric)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        return predict_command(run, dataset, workdir)


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Losses [B] in nats, float32, of logits and target probabilities [B, classes]."""
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 [classes] of counts [label, prediction]; 0 where a class has none."""
    right, predicted, labelled = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    f1 = 2 * right / np.maximum(predicted + labelled, 1)
    return {"precision": right / np.maximum(predicted, 1), "recall": right / np.maximum(labelled, 1), "f1": f1}


def area_under_curve(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the area under the ROC curve of the class against the rest.

    `probabilities` [n, classes], `labels` int [n]. Classes without an example are left out; ZooError where fewer than
    two are left.
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    if len(present) < 2:
        raise ZooError("task.extra-metrics auc needs examples of at least two classes in the split")
    return float(np.mean([roc_auc_score(labels == label, probabilities[:, label]) for label in present]))


def predict_command(run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
    """The command that predicts the first held-out example; an image is written to example.png."""
    split = dataset.test or dataset.validation or dataset.train
    example = split.read(np.arange(1))
    if "image" in example:
        from PIL import Image

        image, raw = example["image"][0], f"{workdir}/example.png"
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(raw)
    else:
        inputs: Any = run.inputs
        ends = int(inputs.tokenizer == "wordpiece")  # [CLS] and [SEP], which its encoding adds
        raw = inputs.decode(example["tokens"][0, ends : example["length"][0] - ends])
    return f"use it: python -m zoo predict {workdir} {shlex.quote(raw)}"
