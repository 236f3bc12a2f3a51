"""Masked language modelling: predict hidden tokens from the text on both sides (Devlin et al. 2019)."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.data.source import Dataset
from train.forward import Forward
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run

HELD_OUT = 7  # evaluation hides every seventh token, about the default share of training


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(Task):
    """Of the tokens to predict, training replaces 80 % by the mask and 10 % by another token, and leaves 10 %."""

    mask_rate: float = 0.15  # share of the tokens to predict

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "tokens"
    model_args: ClassVar[dict[str, Any]] = {"output": "tokens"}
    needs: ClassVar[tuple[str, ...]] = ("tokens", "targets")

    def check(self) -> None:
        if not 0 < self.mask_rate < 1:
            raise ZooError(f"task.mask-rate must be between 0 and 1, not {self.mask_rate}")

    def check_model(self, model: type[nn.Module]) -> None:
        if not hasattr(model, "output"):
            raise ZooError(f"{model.__name__} predicts no masked tokens: it has no field output, as bert_base has")

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        """Hides tokens: `hidden` bool [B, T] marks them, `answers` int32 [B, T] has the original tokens."""
        inputs: Any = forward.inputs

        def hide(row: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, row), 3)
            hidden = jax.random.bernoulli(keys[0], self.mask_rate, tokens.shape)
            kind = jax.random.uniform(keys[1], tokens.shape)
            others = jax.random.randint(keys[2], tokens.shape, 0, inputs.vocab_size, tokens.dtype)
            shown = jnp.where(kind < 0.8, inputs.mask, jnp.where(kind < 0.9, others, tokens))
            return hidden, jnp.where(hidden, shown, tokens)

        hidden, tokens = jax.vmap(hide)(batch["row"], batch["tokens"])
        return {**batch, "tokens": tokens, "hidden": hidden, "answers": batch["tokens"]}, state.extra

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Cross-entropy in nats over hidden tokens of weight 1; evaluation hides every seventh."""
        inputs: Any = forward.inputs
        args, kwargs = inputs.arguments(batch)
        if train:
            hidden, answers = batch["hidden"], batch["answers"]
        else:
            hidden, answers = every_seventh(batch), batch["tokens"]
            args = (jnp.where(hidden, inputs.mask, args[0]), *args[1:])
        logits = forward(*args, train=train, **kwargs)
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probabilities, answers[..., None], axis=-1)[..., 0]
        weight = batch["weight"] * hidden
        right = jnp.argmax(logits, axis=-1) == answers
        total = jnp.sum(losses * weight)
        return Loss(total, jnp.sum(weight), {"loss": total, "accuracy": jnp.sum(right * weight)})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Means over hidden tokens, and the perplexity."""
        loss = sums["loss"] / max(sums["count"], 1.0)
        accuracy = sums["accuracy"] / max(sums["count"], 1.0)
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        return f"use it: python -m zoo predict {workdir} 'a text with a [MASK] to predict'"


def every_seventh(batch: Batch) -> jax.Array:
    """bool [B, T]: the tokens that evaluation hides."""
    rows, steps = batch["tokens"].shape
    return (jnp.arange(steps) + jnp.arange(rows)[:, None]) % HELD_OUT == HELD_OUT - 1
