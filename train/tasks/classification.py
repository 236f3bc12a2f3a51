"""Classification of images and texts: cross-entropy and accuracy."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.data.augment import AugmentConfig, augment, mix
from zoo.errors import ZooError

Batch = Mapping[str, jax.Array]
MIXING = 2**31 - 1  # folded into the step's key where an example's is its row


@dataclasses.dataclass(frozen=True)
class Classification:
    label_smoothing: float = 0.0  # probability mass spread evenly over all classes, in training
    test_flip: bool = False  # evaluate on the mean of the logits of an image and its mirror image

    metric: ClassVar[str] = "accuracy"  # drawn beside the loss, and what "best" means
    unit: ClassVar[str] = "examples"  # what `count` counts
    model_args: ClassVar[dict[str, Any]] = {}  # the fields of a model that follow from the task

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise ZooError(f"task.label-smoothing must be in [0, 1), not {self.label_smoothing}")

    def augmented(
        self, batch: Batch, config: AugmentConfig, key: jax.Array, inputs: Any, model: nn.Module, state: Any
    ) -> Batch:
        """A training batch with `image` augmented, uint8 to float32 of 0 to 255.

        Where examples are mixed, `share` [B] is what is left of an example and `other_label` [B] whose the rest is.
        """
        if config == AugmentConfig():
            return batch
        images = augment(config, key, batch["image"].astype(jnp.float32), batch["row"])
        if not config.mixes:
            return {**batch, "image": images}
        images, share = mix(config, jax.random.fold_in(key, MIXING), images)
        others = jnp.roll(batch["label"], 1)
        return {**batch, "image": images, "other_label": others, "share": jnp.full(others.shape, share)}

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model without classes."""
        if not hasattr(model, "num_classes"):
            raise ZooError(f"{model.__name__} is no classifier: it has no field num_classes")

    def initial_carry(self, model: nn.Module, batch_size: int) -> None:
        """Batches have nothing to do with one another."""

    def evaluate(self, model: nn.Module, variables: Any, inputs: Any, carry: None, batch: Batch) -> tuple[Any, None]:
        """What is evaluated: float32 [B, classes]; nothing is carried on."""
        args, kwargs = inputs.arguments(batch)
        logits = jnp.asarray(model.apply(variables, *args, **kwargs), jnp.float32)
        if self.test_flip:
            mirrored = model.apply(variables, args[0][:, :, ::-1], **kwargs)
            logits = (logits + jnp.asarray(mirrored, jnp.float32)) / 2
        return logits, None

    def sums(self, logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Sums over examples, in float32: `loss` in nats, `accuracy` (right answers), `count` (examples).

        An example counts with its `weight` [B], 1 or, for the padding of a last batch, 0. Of a mixed example the loss
        is shared out between both labels, and the right answer is its own.
        """
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        labels, weight = batch["label"], batch["weight"]
        target = jax.nn.one_hot(labels, logits.shape[-1])
        if "share" in batch:
            share = batch["share"][:, None]
            target = share * target + (1 - share) * jax.nn.one_hot(batch["other_label"], logits.shape[-1])
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
