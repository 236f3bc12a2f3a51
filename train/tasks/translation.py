"""From a source to a target: each token by cross-entropy, given those before it; and how good what is said is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.data.augment import AugmentConfig
from zoo.errors import ZooError

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Translation:
    """Teacher forcing, and if asked for scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).

    The best checkpoint is the one with the most right tokens of validation, each told those before.

    When a run ends, and by `python -m train evaluate`, targets are decoded by beam search and compared whole.
    """

    label_smoothing: float = 0.1  # probability mass spread evenly over all tokens, in training
    sampling_rate: float = 0.0  # share of the tokens told in training that are what the model says in their place
    sampling_steps: int = 1000  # over which that share rises from nothing
    beam_size: int = 5  # of the decoding that a run ends with
    length_penalty: float = 0.6  # exponent of a length by which its score is divided
    spacy_language: str | None = None  # en: BLEU on the tokens of spaCy's blank pipeline too, which is to be installed

    metric: ClassVar[str] = "accuracy"  # drawn beside the loss, and what "best" means
    unit: ClassVar[str] = "tokens"  # what `count` counts
    model_args: ClassVar[dict[str, Any]] = {}  # the fields of a model that follow from the task

    def check(self) -> None:
        """ZooError for a value out of range."""
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

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model that reads no source."""
        if not hasattr(model, "encode"):
            raise ZooError(f"{model.__name__} is no encoder-decoder: it has no encode (see zoo.sequence)")

    def initial_carry(self, model: nn.Module, batch_size: int) -> None:
        """Batches have nothing to do with one another."""

    def augmented(
        self, batch: Batch, config: AugmentConfig, key: jax.Array, inputs: Any, model: nn.Module, state: Any
    ) -> Batch:
        """The batch, by scheduled sampling with `before`, what precedes each token of a target."""
        if not self.sampling_rate:
            return batch
        return sampled(self, model, state.variables(), inputs, batch, state.step, key)

    def evaluate(self, model: nn.Module, variables: Any, inputs: Any, carry: None, batch: Batch) -> tuple[Any, None]:
        """Logits [B, T, V] of each token of the targets, given those before it."""
        args, kwargs = inputs.arguments(batch)
        return model.apply(variables, *args, **kwargs), None

    def sums(self, logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Sums over tokens, the end among them, in float32: `loss` in nats, `accuracy` (right ones), `count`."""
        target = batch["target"]
        told = jnp.arange(target.shape[1]) < batch["length"][:, None]
        weight = batch["weight"][:, None] * told
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probabilities, target[..., None], axis=-1)[..., 0]
        if train and self.label_smoothing:
            even = -jnp.mean(log_probabilities, axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * even
        right = jnp.argmax(logits, axis=-1) == target
        return {"loss": jnp.sum(losses * weight), "accuracy": jnp.sum(right * weight), "count": jnp.sum(weight)}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over tokens, and the perplexity, of summed sums."""
        loss = sums["loss"] / sums["count"]
        accuracy = sums["accuracy"] / sums["count"]
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has the most of."""
        return metrics["accuracy"]


def sampled(
    task: Translation, model: nn.Module, variables: Any, inputs: Any, batch: Batch, step: Any, key: Any
) -> Batch:
    """A batch whose `before` is what precedes each token of a target, some of it by what the model says there.

    Those are the likeliest tokens by a first reading of the whole target, so that a Transformer need not go token by
    token either (Mihaylova and Martins 2019, arXiv:1906.07651); no gradient flows through them.
    """
    args, kwargs = inputs.arguments(batch)
    logits: Any = model.apply(variables, *args, **kwargs)
    said = jnp.argmax(logits, axis=-1).astype(args[0].dtype)
    share = task.sampling_rate * jnp.minimum(step / task.sampling_steps, 1.0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["row"])
    mixed = jax.vmap(lambda key: jax.random.bernoulli(key, share, said.shape[1:]))(keys)
    before = jnp.where(mixed, jnp.roll(said, 1, axis=1), args[0]).at[:, 0].set(inputs.first)
    return {**batch, "before": jax.lax.stop_gradient(before)}


def quality(
    said: Sequence[str], right: Sequence[str], by_character: bool, spacy_language: str | None = None
) -> dict[str, float]:
    """How near texts come to the right ones, as whole sets.

    The share that is the same (`exact_match`), edits a unit of the right ones (`error_rate`; units are characters, or
    words between spaces), `bleu` and `chrf` as sacreBLEU has them, of 0 to 100; and with a language `spacy_bleu`, on
    the tokens of its blank pipeline in place of sacreBLEU's.
    """
    import sacrebleu

    pairs = [(units(a, by_character), units(b, by_character)) for a, b in zip(said, right, strict=True)]
    edits = sum(edit_distance(a, b) for a, b in pairs)
    found = {
        "exact_match": sum(a == b for a, b in zip(said, right, strict=True)) / len(right),
        "error_rate": edits / sum(len(b) for _, b in pairs),
        "bleu": sacrebleu.corpus_bleu(said, [right]).score,
        "chrf": sacrebleu.corpus_chrf(said, [right]).score,
    }
    if spacy_language is not None:
        cut = spacy_tokenizer(spacy_language)
        spaced = [[" ".join(token.text for token in cut(text)) for text in texts] for texts in (said, right)]
        found["spacy_bleu"] = sacrebleu.corpus_bleu(spaced[0], spaced[1:], tokenize="none", force=True).score
    return found


def spacy_tokenizer(language: str) -> Any:
    """The tokenizer of `spacy.blank(language)`; ZooError where spaCy is missing, or has no such language."""
    try:
        import spacy

        return spacy.blank(language).tokenizer
    except ModuleNotFoundError as error:
        raise ZooError(f"task.spacy-language needs {error.name}: pip install {error.name}") from None
    except ImportError as error:
        raise ZooError(f"task.spacy-language {language!r}: {str(error).splitlines()[0]}") from None


def units(text: str, by_character: bool) -> list[str]:
    """What an edit is of: the characters of a text, or its words between spaces."""
    return list(text) if by_character else text.split()


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest units put in, left out or exchanged that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, unit in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (unit != other))
    return row[-1]
