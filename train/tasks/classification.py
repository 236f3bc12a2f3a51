"""Classification of images: cross-entropy and accuracy."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from train.data.augment import AugmentConfig, augment
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Classification:
    label_smoothing: float = 0.0  # probability mass spread evenly over all classes, in training

    metric: ClassVar[str] = "accuracy"  # drawn beside the loss, and what "best" means

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise ZooError(f"task.label-smoothing must be in [0, 1), not {self.label_smoothing}")

    def model_inputs(self, inputs: ImageInputs, batch: Batch, config: AugmentConfig, key: jax.Array | None) -> Any:
        """What the model takes: uint8 images [B, H, W, C], augmented where there is a key, normalised to float32."""
        images = batch["image"].astype(jnp.float32)
        if key is not None and config != AugmentConfig():
            images = augment(config, key, images, batch["row"])
        return inputs.normalize(images)

    def sums(self, logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Sums over examples, in float32: `loss` in nats, `accuracy` (right answers), `count` (examples).

        An example counts with its `weight` [B], 1 or, for the padding of a last batch, 0.
        """
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        labels, weight = batch["label"], batch["weight"]
        target = jax.nn.one_hot(labels, logits.shape[-1])
        if train and self.label_smoothing:
            target = (1 - self.label_smoothing) * target + self.label_smoothing / logits.shape[-1]
        losses = -jnp.sum(target * log_probabilities, axis=-1)
        right = jnp.argmax(logits, axis=-1) == labels
        return {"loss": jnp.sum(losses * weight), "accuracy": jnp.sum(right * weight), "count": jnp.sum(weight)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over examples, of summed sums."""
        return {name: sums[name] / sums["count"] for name in ("loss", "accuracy")}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has the most of."""
        return metrics["accuracy"]
