"""What is timed: a model of any family with random weights, and a random batch for it."""

from typing import Any, NamedTuple

import jax
import numpy as np

import zoo
from train.settings import at_least
from train.tasks.classification import Classification
from train.tasks.language_model import LanguageModel
from train.tasks.translation import Translation
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.image import ImageInputs
from zoo.inputs.pairs import SPECIAL, PairInputs
from zoo.inputs.text import TextInputs


class Problem(NamedTuple):
    """A model with its variables, and a batch as in the training loop."""

    name: str
    args: dict[str, Any]  # fields that differ from the registered model's
    model: Any
    variables: Any
    inputs: Inputs
    task: Any
    batch: dict[str, np.ndarray]
    targets: np.ndarray  # targets of the logits [..., V], int32 [...]; -1 where not counted

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model computes in."""
        return np.dtype(self.model.dtype).name


def make_problem(name: str, args: dict[str, Any], batch_size: int, size: int | None, seed: int) -> Problem:
    """A problem of a registered model with the fields `args`.

    `size` is the side of an image in pixels or the tokens per row, by default the model's own. Sources and targets of
    an encoder-decoder have from a third of `size` to `size` tokens. ZooError for a model that is no image classifier,
    language model or encoder-decoder.
    """
    at_least("batch-size", batch_size, 1)
    at_least("size", 1 if size is None else size, 1)
    at_least("seed", seed, 0)
    info, model = zoo.model_info(name), zoo.create_model(name, **args)
    rng = np.random.default_rng(seed)
    batch: dict[str, np.ndarray] = {"row": np.arange(batch_size, dtype=np.int32)}
    if len(info.input_shape) == 3 and hasattr(model, "num_classes"):
        shape = (*((size, size) if size else info.input_shape[:2]), info.input_shape[2])
        labels = tuple(map(str, range(model.num_classes)))
        inputs: Inputs = ImageInputs(shape, (0.5,) * shape[2], (0.25,) * shape[2], labels)
        batch |= {"image": rng.integers(0, 256, (batch_size, *shape), np.uint8)}
        batch |= {
            "label": rng.integers(0, len(labels), batch_size, np.int32),
            "weight": np.ones(batch_size, np.float32),
        }
        task, targets, example = Classification(), batch["label"], np.zeros((1, *shape), np.float32)
        return Problem(name, args, model, _initial(model, example, seed), inputs, task, batch, targets)

    length = size or info.input_shape[0]
    variables = _initial(model, np.zeros((1, 2), np.int32), seed) if hasattr(model, "vocab_size") else None
    if hasattr(model, "encode"):
        sizes = {"source": model.source_vocab_size or model.vocab_size, "target": model.vocab_size}
        for side, symbols in sizes.items():
            lengths = rng.integers(-(-length // 3), length + 1, batch_size, np.int32)
            present = np.arange(length) < lengths[:, None]
            batch[side] = np.where(present, rng.integers(SPECIAL, symbols, present.shape, np.int32), 0)
            batch["source_length" if side == "source" else "length"] = lengths
        batch["weight"] = np.ones(batch_size, np.float32)
        source, target = (_characters(symbols - SPECIAL, length) for symbols in sizes.values())
        targets = np.where(present, batch["target"], -1)
        return Problem(
            name, args, model, variables, PairInputs(source, target), Translation(label_smoothing=0.0), batch, targets
        )
    if hasattr(model, "init_state") and hasattr(model, "vocab_size"):
        tokens = rng.integers(0, model.vocab_size, (batch_size, length + 1), np.int32)
        ones = np.ones((batch_size, length), np.float32)
        batch |= {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": ones, "characters": ones}
        texts = _characters(model.vocab_size, length)
        return Problem(name, args, model, variables, texts, LanguageModel(), batch, tokens[:, 1:])
    raise ZooError(f"{name} cannot be timed: it is no image classifier, language model or encoder-decoder")


def _initial(model: Any, example: np.ndarray, seed: int) -> Any:
    return jax.jit(model.init)(jax.random.key(seed), example)


def _characters(symbols: int, length: int) -> TextInputs:
    return TextInputs("char", "".join(map(chr, range(symbols))), length)
