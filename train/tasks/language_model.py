"""Language modelling: the next symbol, by cross-entropy; nats, bits a character, perplexity."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.data.augment import AugmentConfig
from zoo.errors import ZooError

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Back-propagation through the windows of a text; a recurrent model's state each hands on to the next."""

    z_loss: float = 0.0  # in training, this times log(Z)^2 a symbol, which keeps logits small (PaLM: 1e-4)

    metric: ClassVar[str] = "bits_per_character"  # drawn beside the loss
    unit: ClassVar[str] = "tokens"  # what `count` counts
    model_args: ClassVar[dict[str, Any]] = {}  # the fields of a model that follow from the task

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not self.z_loss >= 0:
            raise ZooError(f"task.z-loss must be at least 0, not {self.z_loss}")

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model that does not follow the protocol of `zoo.sequence`."""
        if not hasattr(model, "init_state"):
            raise ZooError(f"{model.__name__} is no language model: it has no init_state (see zoo.sequence)")

    def initial_carry(self, model: nn.Module, batch_size: int) -> Any:
        """A recurrent model's state before the first window; others read each window by itself."""
        return model.init_state(batch_size, 0) if getattr(model, "recurrent", False) else None  # type: ignore[attr-defined]

    def augmented(
        self, batch: Batch, config: AugmentConfig, key: jax.Array, inputs: Any, model: nn.Module, state: Any
    ) -> Batch:
        return batch

    def evaluate(self, model: nn.Module, variables: Any, inputs: Any, carry: Any, batch: Batch) -> tuple[Any, Any]:
        """Logits [B, T, V] of a window, and the state after it."""
        args, kwargs = inputs.arguments(batch)
        if carry is None:
            return model.apply(variables, *args, **kwargs), None
        return model.apply(variables, *args, state=carry, **kwargs)  # type: ignore[return-value]

    def sums(self, logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Sums over symbols of weight 1, in float32: `loss` in nats, `characters` (theirs), `count`.

        With `z_loss`, training minimises the `penalty` too: z_loss log(Z)^2, where Z is the softmax's denominator
        (Chowdhery et al. 2022, section 5).
        """
        logits, weight = logits.astype(jnp.float32), batch["weight"]
        log_probabilities = jax.nn.log_softmax(logits)
        told = jnp.take_along_axis(log_probabilities, batch["targets"][..., None], axis=-1)[..., 0]
        characters = jnp.sum(batch["characters"] * weight)
        sums = {"loss": -jnp.sum(told * weight), "characters": characters, "count": jnp.sum(weight)}
        if train and self.z_loss:
            log_z = jax.nn.logsumexp(logits, axis=-1)
            sums["penalty"] = self.z_loss * jnp.sum(log_z**2 * weight)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats and perplexity a token, bits a character, of summed sums."""
        loss = sums["loss"] / sums["count"]
        bits = sums["loss"] / math.log(2) / max(sums["characters"], 1.0)
        return {"loss": loss, "bits_per_character": bits, "perplexity": math.exp(min(loss, 700.0))}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has the most of."""
        return -metrics["loss"]
