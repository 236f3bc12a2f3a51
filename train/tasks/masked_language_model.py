"""Masked language modelling: hidden tokens of a text, told from what stands on both sides (Devlin et al. 2019)."""

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
HELD_OUT = 7  # evaluation hides every seventh token, about as many as training by its default


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel:
    """Of the tokens to tell, training shows the mask for 80 %, another token for 10 %, and 10 % as they are."""

    mask_rate: float = 0.15  # share of the tokens that are to be told

    metric: ClassVar[str] = "accuracy"  # drawn beside the loss
    unit: ClassVar[str] = "tokens"  # what `count` counts: those to tell
    model_args: ClassVar[dict[str, Any]] = {"output": "tokens"}  # the fields of a model that follow from the task

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not 0 < self.mask_rate < 1:
            raise ZooError(f"task.mask-rate must be between 0 and 1, not {self.mask_rate}")

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model that tells no masked tokens."""
        if not hasattr(model, "output"):
            raise ZooError(f"{model.__name__} tells no masked tokens: it has no field output, as bert_base has")

    def initial_carry(self, model: nn.Module, batch_size: int) -> None:
        """Windows have nothing to do with one another."""

    def augmented(
        self, batch: Batch, config: AugmentConfig, key: jax.Array, inputs: Any, model: nn.Module, state: Any
    ) -> Batch:
        """A training batch with tokens hidden: `told` bool [B, T] says which, `answers` [B, T] what stood there."""

        def hide(row: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, row), 3)
            told = jax.random.bernoulli(keys[0], self.mask_rate, tokens.shape)
            kind = jax.random.uniform(keys[1], tokens.shape)
            others = jax.random.randint(keys[2], tokens.shape, 0, inputs.vocab_size, tokens.dtype)
            shown = jnp.where(kind < 0.8, inputs.mask, jnp.where(kind < 0.9, others, tokens))
            return told, jnp.where(told, shown, tokens)

        told, tokens = jax.vmap(hide)(batch["row"], batch["tokens"])
        return {**batch, "tokens": tokens, "told": told, "answers": batch["tokens"]}

    def evaluate(self, model: nn.Module, variables: Any, inputs: Any, carry: None, batch: Batch) -> tuple[Any, None]:
        """Logits [B, T, V] of a window of which every seventh token is the mask."""
        args, kwargs = inputs.arguments(batch)
        tokens = jnp.where(every_seventh(batch), inputs.mask, args[0])
        return model.apply(variables, tokens, *args[1:], **kwargs), None

    def sums(self, logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Sums over hidden tokens of weight 1, in float32: `loss` in nats, `accuracy` (right answers), `count`."""
        told, answers = (batch["told"], batch["answers"]) if train else (every_seventh(batch), batch["tokens"])
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probabilities, answers[..., None], axis=-1)[..., 0]
        weight = batch["weight"] * told
        right = jnp.argmax(logits, axis=-1) == answers
        return {"loss": jnp.sum(losses * weight), "accuracy": jnp.sum(right * weight), "count": jnp.sum(weight)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over hidden tokens, and the perplexity, of summed sums."""
        loss = sums["loss"] / max(sums["count"], 1.0)
        accuracy = sums["accuracy"] / max(sums["count"], 1.0)
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has the most of."""
        return -metrics["loss"]


def every_seventh(batch: Batch) -> jax.Array:
    """bool [B, T]: what evaluation hides."""
    rows, steps = batch["tokens"].shape
    return (jnp.arange(steps) + jnp.arange(rows)[:, None]) % HELD_OUT == HELD_OUT - 1
