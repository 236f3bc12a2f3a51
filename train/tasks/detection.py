"""Object detection: the losses of a detector, average precision, and counts of objects."""

import dataclasses
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train.average_precision import Image, average_precision, coco
from train.data.augment_boxes import BoxAugmentConfig, augmented
from train.data.source import Dataset, Split
from train.forward import Forward
from train.report import detection as detection_report
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class Detection(Task):
    """The sum of a detector's losses, as its method `losses` gives them.

    Metrics: loss, and loss/NAME of each. 0 to 1: map_50, the mean over classes of the average precision where boxes
    overlap by one half, and map_50/CLASS; count_error/CLASS, the mean absolute error of the number of objects of a
    class in an image. A run's last evaluation adds COCO's other figures.
    """

    augment: BoxAugmentConfig = dataclasses.field(default_factory=BoxAugmentConfig)
    count_threshold: float = 0.5  # the least score of a detection that is counted

    metric: ClassVar[str] = "map_50"
    needs: ClassVar[tuple[str, ...]] = ("boxes", "box_label")

    def check(self) -> None:
        self.augment.check()
        if not 0 < self.count_threshold < 1:
            raise ZooError(f"task.count-threshold must be between 0 and 1, not {self.count_threshold}")

    def check_model(self, model: type[nn.Module]) -> None:
        if not getattr(model, "detects", False):
            raise ZooError(f"{model.__name__} is no detector, such as fasterrcnn_resnet50_fpn")

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        return augmented(self.augment, key, batch), state.extra

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Each loss is a sum over a batch, divided by what it counts there; in float32."""
        args, kwargs = forward.inputs.arguments(batch)
        labels = jnp.where(batch["box_ignored"], -1, batch["box_label"])
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch["row"])
        losses = forward(*args, batch["boxes"], labels, keys, **kwargs, method="losses", train=train)
        weight = batch["weight"]
        count = jnp.sum(weight)
        sums = {}
        for name, (total, counted) in losses.items():
            sums[f"loss/{name}"] = count * jnp.sum(total * weight) / jnp.maximum(jnp.sum(counted * weight), 1.0)
        loss = jnp.sum(jnp.stack([*sums.values()]))
        return Loss(loss, count, {"loss": loss, **sums})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return {name: value / sums["count"] for name, value in sums.items() if name.split("/")[0] == "loss"}

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """The losses, and the figures of what is detected."""
        metrics = self.metrics(evaluation.sums(split))
        images = images_of(evaluation.collect(_detected, split))
        return metrics | figures(images, evaluation.inputs.labels, self.count_threshold, evaluation.final)

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["map_50"]

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return detection_report.draw(run, dataset, options, self.metric, self.count_threshold)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        from PIL import Image as Picture

        split = dataset.test or dataset.validation or dataset.train
        Picture.fromarray(split.read(np.arange(1))["image"][0]).save(workdir / "example.png")
        return f"use it: python -m zoo predict {workdir} {workdir}/example.png"


def _detected(forward: Forward, batch: Batch) -> dict[str, jax.Array]:
    """What is detected and what is there."""
    args, kwargs = forward.inputs.arguments(batch)
    names = ("boxes", "box_label", "box_ignored", "scale")
    return {**forward(*args, **kwargs), **{f"real_{name}": batch[name] for name in names}}


def images_of(found: Mapping[str, np.ndarray]) -> list[Image]:
    """The images of the arrays of `_detected`, whose boxes are then in pixels of the images."""
    images = []
    for i, scale in enumerate(found["real_scale"]):
        kept, real = found["labels"][i] >= 0, found["real_box_label"][i] >= 0
        images.append(
            Image(
                found["boxes"][i][kept] / scale,
                found["scores"][i][kept],
                found["labels"][i][kept],
                found["real_boxes"][i][real] / scale,
                found["real_box_label"][i][real],
                found["real_box_ignored"][i][real],
            )
        )
    return images


def figures(images: list[Image], labels: tuple[str, ...], threshold: float, final: bool) -> dict[str, float]:
    """Average precision and errors of counts; with `final`, COCO's figures too. Classes without a box are left out."""
    by_class = {label: average_precision(images, number) for number, label in enumerate(labels)}
    by_class = {label: value for label, value in by_class.items() if not np.isnan(value)}
    metrics = {"map_50": float(np.mean([*by_class.values()])) if by_class else 0.0}
    if final:
        metrics |= {name: value for name, value in coco(images, labels).items() if name != "map_50"}
    metrics |= {f"map_50/{label}": value for label, value in by_class.items()}
    for number, label in enumerate(labels):
        counts = [
            (((i.labels == number) & (i.scores >= threshold)).sum(), ((i.real_labels == number) & ~i.ignored).sum())
            for i in images
        ]
        metrics[f"count_error/{label}"] = float(np.mean([abs(int(a) - int(b)) for a, b in counts]))
    return metrics
