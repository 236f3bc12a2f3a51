"""From a source to a target: each token by cross-entropy, under teacher forcing; decoded targets compared whole."""

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.data.source import Dataset, Split
from train.forward import Forward
from train.quality import bleu_signature, check_bleu_tokenizer, quality, spacy_tokenizer
from train.report import alignments
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.decode import translate
from zoo.errors import ZooError, first_line
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """Teacher forcing, optionally with scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).

    The best checkpoint has the highest teacher-forced accuracy on validation data. When a run ends, and in `python -m
    train evaluate`, targets are decoded by beam search and compared whole.
    """

    label_smoothing: float = 0.1  # probability mass spread evenly over all tokens, in training
    sampling_rate: float = 0.0  # share of the target's tokens that training replaces by the model's own predictions
    sampling_steps: int = 1000  # over which that share rises from zero
    beam_size: int = 5  # of the final decoding
    length_penalty: float = 0.6  # exponent of a length by which its score is divided
    spacy_language: str | None = None  # such as en: adds BLEU on the tokens of spaCy's blank pipeline (needs spaCy)
    # sacreBLEU's: 13a, zh, ja-mecab, ko-mecab, char, intl, flores200, none; default: by the script of the targets
    bleu_tokenizer: str | None = None

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("source", "target")

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ZooError(f"task.label-smoothing must be in [0, 1), not {self.label_smoothing}")
        if not 0 <= self.sampling_rate <= 1:
            raise ZooError(f"task.sampling-rate must be in [0, 1], not {self.sampling_rate}")
        if self.sampling_steps < 1:
            raise ZooError(f"task.sampling-steps must be at least 1, not {self.sampling_steps}")
        if self.beam_size < 1:
            raise ZooError(f"task.beam-size must be at least 1, not {self.beam_size}")
        if self.spacy_language is not None:
            spacy_tokenizer(self.spacy_language)
        if self.bleu_tokenizer is not None:
            check_bleu_tokenizer(self.bleu_tokenizer)

    def check_model(self, model: type[nn.Module]) -> None:
        if not hasattr(model, "encode"):
            raise ZooError(f"{model.__name__} is no encoder-decoder: it has no encode (see zoo.sequence)")

    def prepare(self, forward: Forward, state: Any, batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        """With scheduled sampling, `before` [B, T] are the tokens that precede each token of a target."""
        return (self.sampled(forward, batch, key) if self.sampling_rate else batch), state.extra

    def sampled(self, forward: Forward, batch: Batch, key: jax.Array) -> Batch:
        """A batch whose `before` mixes the target's tokens with the model's predictions.

        The predictions are the most probable tokens of a first pass over the whole target, so that a Transformer need
        not go token by token either (Mihaylova and Martins 2019, arXiv:1906.07651); no gradient flows through them.
        """
        inputs: Any = forward.inputs
        args, kwargs = inputs.arguments(batch)
        predicted = jnp.argmax(forward(*args, **kwargs), axis=-1).astype(args[0].dtype)
        share = self.sampling_rate * jnp.minimum(forward.step / self.sampling_steps, 1.0)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["row"])
        mixed = jax.vmap(lambda key: jax.random.bernoulli(key, share, predicted.shape[1:]))(keys)
        before = jnp.where(mixed, jnp.roll(predicted, 1, axis=1), args[0]).at[:, 0].set(inputs.first)
        return {**batch, "before": jax.lax.stop_gradient(before)}

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Cross-entropy in nats over tokens, with their ends, under teacher forcing."""
        args, kwargs = forward.inputs.arguments(batch)
        logits = forward(*args, train=train, **kwargs)
        target = batch["target"]
        inside = jnp.arange(target.shape[1]) < batch["length"][:, None]
        weight = batch["weight"][:, None] * inside
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probabilities, target[..., None], axis=-1)[..., 0]
        if train and self.label_smoothing:
            even = -jnp.mean(log_probabilities, axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * even
        right = jnp.argmax(logits, axis=-1) == target
        total = jnp.sum(losses * weight)
        return Loss(total, jnp.sum(weight), {"loss": total, "accuracy": jnp.sum(right * weight)})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Means over tokens, and the perplexity."""
        loss = sums["loss"] / sums["count"]
        accuracy = sums["accuracy"] / sums["count"]
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """The means; after training also the quality of the targets that beam search decodes."""
        metrics = super().evaluate(evaluation, split)
        return metrics | self.decoded(evaluation.run(), split) if evaluation.final else metrics

    def decoded(self, run: Run, split: Any) -> dict[str, float]:
        """The quality of a split's decoded targets."""
        sources, right = zip(*split.texts, strict=True)
        inputs: Any = run.inputs
        decoded = self.translations(run, sources)
        return quality(decoded, right, inputs.by_character, self.spacy_language, self.bleu_tokenizer)

    def translations(self, run: Run, sources: Any) -> list[str]:
        """The best target of each source."""
        found = translate(run, sources, beam_size=self.beam_size, length_penalty=self.length_penalty)
        return [best.text for best, *_ in found]

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["accuracy"]

    def about(self, dataset: Dataset) -> dict[str, str]:
        """sacreBLEU's signature, which says how BLEU was computed; nothing where sacreBLEU fails."""
        split = dataset.test or dataset.validation
        if split is None:
            return {}
        try:
            return {"bleu_signature": self.signature([right for _, right in split.texts])}
        except Exception as error:  # the run has ended, and its weights and metrics are not lost for it
            warnings.warn(f"BLEU has no signature: {first_line(error)}", stacklevel=2)
            return {}

    def signature(self, references: list[str]) -> str:
        return bleu_signature(references, self.bleu_tokenizer)

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return alignments.draw(run, dataset, options, self)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        """Samples of held-out sources, and a picture of their attention."""
        split = dataset.test or dataset.validation or dataset.train
        return alignments.samples(run, split.texts, self.translations, workdir)
