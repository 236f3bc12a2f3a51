"""Language modelling: predict the next token, by cross-entropy; nats, bits per character, perplexity."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.data.source import Dataset
from train.forward import Forward
from train.report import cells
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """A recurrent model hands its state on from each window of the text to the next (truncated back-propagation).

    Its users begin with a state of zeros, which it would meet in training only at step 0. So a row's state is now and
    then set to zeros.
    """

    z_loss: float = 0.0  # in training, this times log(Z)^2 per token, which keeps logits small (PaLM: 1e-4)
    reset_state: float = 0.02  # in training, the probability of zeros for a row's state before a window

    metric: ClassVar[str] = "bits_per_character"
    unit: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("tokens", "targets", "characters")

    def check(self) -> None:
        if not self.z_loss >= 0:
            raise ZooError(f"task.z-loss must be at least 0, not {self.z_loss}")
        if not 0 <= self.reset_state <= 1:
            raise ZooError(f"task.reset-state must be in [0, 1], not {self.reset_state}")

    def check_model(self, model: type[nn.Module]) -> None:
        if not hasattr(model, "init_state"):
            raise ZooError(f"{model.__name__} is no language model: it has no init_state (see zoo.sequence)")

    def carry(self, model: nn.Module, batch_size: int) -> Any:
        """A recurrent model's state before the first window; other models read each window by itself."""
        return model.init_state(batch_size, 0) if getattr(model, "recurrent", False) else None  # type: ignore[attr-defined]

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        """Sets the state of some rows to zeros."""
        extra = state.extra
        if extra.carry is None or not self.reset_state:
            return batch, extra
        return batch, dataclasses.replace(extra, carry=with_zeros(extra.carry, self.reset_state, key, batch["row"]))

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Cross-entropy in nats over tokens of weight 1, and the number of their `characters`.

        With `z_loss`, training adds z_loss log(Z)^2 to the total, where Z is the softmax's denominator (Chowdhery et
        al. 2022, section 5). In evaluation a recurrent model also reads each window from a state of zeros: `cold_loss`.
        """
        args, kwargs = forward.inputs.arguments(batch)
        weight, sums = batch["weight"], {}
        if extra.carry is None:
            logits, carry = forward(*args, train=train, **kwargs), None
        else:
            logits, carry = forward(*args, train=train, state=extra.carry, **kwargs)
            if not train:
                cold, _ = forward(*args, state=jax.tree.map(jnp.zeros_like, extra.carry), **kwargs)
                sums["cold_loss"] = summed_cross_entropy(cold, batch["targets"], weight)
        logits = logits.astype(jnp.float32)
        total = summed_cross_entropy(logits, batch["targets"], weight)
        sums |= {"loss": total, "characters": jnp.sum(batch["characters"] * weight)}
        if train and self.z_loss:
            log_z = jax.nn.logsumexp(logits, axis=-1)
            total += self.z_loss * jnp.sum(log_z**2 * weight)
        return Loss(total, jnp.sum(weight), sums, carry)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Nats and perplexity per token, bits per character; `cold_loss`, the nats of windows read from zeros."""
        loss = sums["loss"] / sums["count"]
        bits = sums["loss"] / math.log(2) / max(sums["characters"], 1.0)
        metrics = {"loss": loss, "bits_per_character": bits, "perplexity": math.exp(min(loss, 700.0))}
        return metrics | ({"cold_loss": sums["cold_loss"] / sums["count"]} if "cold_loss" in sums else {})

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return cells.draw(run, dataset, options, self.metric)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        """A sample that continues held-out text."""
        split = dataset.test or dataset.validation or dataset.train
        prompt = split.read(np.zeros(1, int))["tokens"][0]  # decoded and encoded again, it might be longer
        text = zoo.generate(run, prompt, length=300, temperature=0.8)
        return f"a sample:\n{text}\nuse it: python -m zoo generate {workdir}"


def with_zeros(state: Any, probability: float, key: jax.Array, rows: jax.Array) -> Any:
    """A state with the zeros of `init_state` in each row with a probability. `rows` int [B] are the places in the
    global batch, from which the draws follow; every leaf has the rows on axis 0."""
    resets = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), probability))(rows)
    return jax.tree.map(lambda leaf: jnp.where(resets.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf), state)


def summed_cross_entropy(logits: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
    """Nats, float32 [], of targets int [B, T] under logits [B, T, V], summed with `weight` [B, T]."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    predicted = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(weight > 0, predicted, 0) * weight)
