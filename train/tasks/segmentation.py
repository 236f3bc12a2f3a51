"""Segmentation: a class for every pixel, by cross-entropy and Dice loss; IoU, Dice and Rand error."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train.data.deform import DeformConfig, pieces
from train.data.segmentation import IGNORED
from train.data.source import Dataset, Split
from train.forward import Forward
from train.report import segmentation as report
from train.settings import Arguments, at_least
from train.tasks.classification import predict_command
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError, unknown
from zoo.ops.tiles import tiled
from zoo.registry import fits
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation

THRESHOLDS = np.arange(0.1, 0.95, 0.1)  # of the probability of objects, for the Rand error


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """Trains on random pieces of the images, of the size of a tile; evaluates whole images, by tiles."""

    cross_entropy: float = 1.0  # its weight in the loss: a mean over pixels
    dice: float = 1.0  # the weight of the Dice loss (Milletari et al. 2016): a mean over classes
    class_weights: Arguments = dataclasses.field(default_factory=dict)  # of the cross-entropy: cell=1 membrane=3
    # w0 and sigma, in pixels, of equation 2 of Ronneberger et al. 2015: the weight 1 + w0 exp(-(d1 + d2)^2 / (2
    # sigma^2)) of a pixel at d1 and d2 pixels from the two nearest objects; the paper's: 10 and 5
    border_weight: float = 0.0
    border_sigma: float = 5.0
    auxiliary: float = 0.5  # the weight of the cross-entropy of a second head, where the model has one
    # evaluate the Rand error at the end; objects are the connected regions of classes other than the first
    rand: bool = False
    augment: DeformConfig = dataclasses.field(default_factory=DeformConfig)  # of image and mask together

    metric: ClassVar[str] = "mean_iou"
    needs: ClassVar[tuple[str, ...]] = ("image", "mask")

    def check(self) -> None:
        for name in ("cross_entropy", "dice", "border_weight", "auxiliary"):
            at_least(f"task.{name.replace('_', '-')}", getattr(self, name), 0)
        if not self.cross_entropy + self.dice > 0:
            raise ZooError("task.cross-entropy and task.dice are both 0: one must be above 0")
        if not 0 < self.border_sigma < 1e4:
            raise ZooError(f"task.border-sigma must be above 0 and below 10,000 pixels, not {self.border_sigma}")
        for label, weight in self.class_weights.items():
            if not (fits(weight, float) and math.isfinite(weight) and weight > 0):
                raise ZooError(f"task.class-weights {label} must be a number above 0, not {weight!r}")
        self.augment.check()

    def check_model(self, model: type[nn.Module]) -> None:
        if not getattr(model, "segments", False):
            raise ZooError(f"{model.__name__} gives no logits for pixels; unet_small and deeplabv3_resnet50 do")

    def check_data(self, dataset: Dataset) -> None:
        super().check_data(dataset)
        if self.border_weight and "border" not in dataset.train.read(np.zeros(1, int)):
            raise ZooError("task.border-weight needs data.borders, which measures how near pixels are to two objects")
        for label in self.class_weights:
            if label not in dataset.inputs.labels:
                raise unknown("label in task.class-weights", label, dataset.inputs.labels)

    def constants(self, dataset: Dataset) -> dict[str, Any]:
        """`class_weights` float32 [classes], where classes do not weigh the same."""
        weights = [self.class_weights.get(label, 1.0) for label in dataset.inputs.labels]
        return {"class_weights": np.array(weights, np.float32)} if self.class_weights else {}

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        height, width = forward.inputs.shape[:2]
        margin = getattr(forward.model, "margin", 0)
        return pieces(self.augment, key, batch, (height, width), margin), state.extra

    def whole(self, forward: Forward, batch: Batch) -> jax.Array:
        """Logits float32 [B, H, W, classes] of whole images, in evaluation."""
        inputs: Any = forward.inputs

        def apply(images: jax.Array) -> jax.Array:
            args, kwargs = inputs.arguments({"image": images})
            return forward(*args, **kwargs).astype(jnp.float32)

        return tiled(apply, batch["image"], inputs.shape[:2], getattr(forward.model, "margin", 0))

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """The mean over examples; `confusion` [classes, classes] counts pixels, a row a label, a column a prediction.

        In evaluation pixels weigh the same.
        """
        second = None
        if not train:
            logits = self.whole(forward, batch)
        else:
            args, kwargs = forward.inputs.arguments(batch)
            if self.auxiliary and getattr(forward.model, "auxiliary", False):
                logits, found = forward(*args, train=True, mutable=["features"], **kwargs)
                second = found["features"]["auxiliary"]
            else:
                logits = forward(*args, train=True, **kwargs)
        logits = jnp.asarray(logits, jnp.float32)
        classes = logits.shape[-1]
        counted, labels = batch["mask"] < classes, jnp.minimum(batch["mask"], classes - 1).astype(jnp.int32)
        weights = counted.astype(jnp.float32)
        constants = extra.constants or {}
        if "class_weights" in constants:
            weights *= jnp.asarray(constants["class_weights"])[labels]
        if train and self.border_weight:
            distance = batch["border"].astype(jnp.float32)
            weights *= 1 + self.border_weight * jnp.exp(-jnp.square(distance) / (2 * self.border_sigma**2))
        target = jax.nn.one_hot(labels, classes) * counted[..., None]
        log_probabilities = jax.nn.log_softmax(logits)

        def cross_entropy(log_probabilities: jax.Array) -> jax.Array:
            entropy = -jnp.sum(target * log_probabilities, axis=-1)
            return _sum(entropy * weights) / jnp.maximum(_sum(weights), 1)

        losses = self.cross_entropy * cross_entropy(log_probabilities)
        if second is not None:
            losses += self.auxiliary * cross_entropy(jax.nn.log_softmax(second.astype(jnp.float32)))
        losses += self.dice * dice_loss(jnp.exp(log_probabilities) * counted[..., None], target)
        predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)
        confusion = jnp.einsum("bhwi,bhwj,b->ij", target, predicted, batch["weight"])
        total = jnp.sum(losses * batch["weight"])
        return Loss(total, jnp.sum(batch["weight"]), {"loss": total, "confusion": confusion})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The loss; over all pixels `pixel_error`, the share of wrong ones, and the means over classes of IoU and Dice,
        of the classes that are labelled or predicted."""
        confusion = np.asarray(sums["confusion"], np.float64)
        iou, dice = overlaps(confusion)
        error = 1 - np.trace(confusion) / max(confusion.sum(), 1)
        means = {"mean_iou": float(np.nanmean(iou)), "mean_dice": float(np.nanmean(dice))}
        return {"loss": sums["loss"] / sums["count"], "pixel_error": float(error), **means}

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """`metrics`; `iou/` and `dice/` of each class; at the end, with `rand`, `rand_error`."""
        sums = evaluation.sums(split)
        metrics = self.metrics(sums)
        for name, values in zip(("iou", "dice"), overlaps(np.asarray(sums["confusion"], np.float64)), strict=True):
            found = zip(evaluation.inputs.labels, values, strict=True)
            metrics |= {f"{name}/{label}": float(value) for label, value in found if not np.isnan(value)}
        if self.rand and evaluation.final:
            arrays = evaluation.collect(self._objects, split)
            metrics["rand_error"] = rand_error(arrays["objects"], arrays["mask"])
        return metrics

    def _objects(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """The probability of each pixel to be no background, float32 [B, H, W]."""
        background = jax.nn.softmax(self.whole(forward, batch))[..., 0]
        return {"objects": 1 - background, "mask": batch["mask"]}

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["mean_iou"]

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return report.draw(run, dataset, options, self.metric)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        return predict_command(run, dataset, workdir)


def _sum(array: jax.Array) -> jax.Array:
    """[B, H, W, ...] summed over pixels."""
    return jnp.sum(array, axis=(1, 2))


def dice_loss(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the Dice coefficient, 1 added above and below: the mean over classes [B], of [B, H, W, classes]."""
    both = _sum(probabilities * target)
    return 1 - jnp.mean((2 * both + 1) / (_sum(probabilities) + _sum(target) + 1), axis=-1)


def overlaps(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and Dice of each class, NaN where it is neither labelled nor predicted, of a confusion matrix of pixels."""
    both, labelled, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return both / (labelled + predicted - both), 2 * both / (labelled + predicted)


def rand_error(objects: np.ndarray, masks: np.ndarray) -> float:
    """ISBI 2012's Rand error: one minus the greatest of the thresholds' mean foreground-restricted Rand F-scores.

    `objects` [n, H, W] are probabilities to be inside an object, `masks` [n, H, W] labels, of which 0 is the
    background. One threshold holds for all images. Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image
    segmentation algorithms for connectomics".
    """
    from scipy import ndimage

    regions = [ndimage.label((mask > 0) & (mask != IGNORED))[0] for mask in masks]
    scores = [
        np.mean([rand_score(ndimage.label(one > level)[0], found) for one, found in zip(objects, regions, strict=True)])
        for level in THRESHOLDS
    ]
    return 1 - float(max(scores))


def rand_score(predicted: np.ndarray, actual: np.ndarray) -> float:
    """The Rand F-score of regions int [H, W] over the pixels whose actual region is not 0; a pixel whose predicted
    region is 0 is a region by itself."""
    inside = actual > 0
    pairs, counts = np.unique(np.stack([actual[inside], predicted[inside]]), axis=1, return_counts=True)
    of_actual, of_predicted = (np.bincount(side, counts) for side in pairs)
    alone = of_predicted[0] if len(of_predicted) else 0.0
    together = np.sum(counts[pairs[1] > 0].astype(float) ** 2) + alone
    either = np.sum(of_actual**2) + np.sum(of_predicted[1:] ** 2) + alone
    return float(2 * together / either) if either else 1.0
