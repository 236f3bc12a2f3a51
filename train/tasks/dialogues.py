"""Answers of the assistant in dialogues, by cross-entropy; what others say is read and not learned."""

import dataclasses
import html
import math
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.data.source import Dataset
from train.forward import Forward
from train.report.page import CURVES, Options, draw_curves, write_page
from train.tasks.language_model import summed_cross_entropy
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run

LENGTH = 64  # tokens of a sample answer, at most
SHOWN = 16  # answers on a page


@dataclasses.dataclass(frozen=True)
class Dialogues(Task):
    """Every token of an answer counts the same, its end-of-turn token too."""

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("tokens", "targets", "weight")

    def check_model(self, model: type[nn.Module]) -> None:
        if not hasattr(model, "init_state"):
            raise ZooError(f"{model.__name__} is no language model: it has no init_state (see zoo.sequence)")

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Cross-entropy in nats over tokens of weight 1, and how many of them are the most probable ones."""
        args, kwargs = forward.inputs.arguments(batch)
        logits = forward(*args, train=train, **kwargs)
        targets, weight = batch["targets"], batch["weight"]
        total = summed_cross_entropy(logits, targets, weight)
        right = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weight)
        return Loss(total, jnp.sum(weight), {"loss": total, "accuracy": right})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Means over the tokens of answers, and the perplexity."""
        loss, accuracy = (sums[name] / max(sums["count"], 1.0) for name in ("loss", "accuracy"))
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def report(self, run: Run, dataset: Dataset, options: Options) -> pathlib.Path:
        """A page of learning curves, and the model's answers beside the dialogues' own."""
        split = getattr(dataset, options.split) or dataset.validation or dataset.train
        output = options.make_output()
        curves = {CURVES: draw_curves(options.folder(), self.metric, output / f"{CURVES}.png")}
        rows = [answered(run, turn) for turn in split.turns(min(options.number, SHOWN))]
        cells = ["".join(f"<td><pre>{html.escape(cell)}</pre></td>" for cell in row) for row in rows]
        head = "<tr><th>dialogue</th><th>the model's answer</th><th>the dialogue's own</th></tr>"
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        table = f"<style>pre{{white-space:pre-wrap}}</style><table border=1 cellpadding=4>{head}{body}</table>"
        captions = {CURVES: "Learning curves: loss and accuracy of the tokens of answers by step."}
        return write_page(options, f"{dataset.name}: {split.described}", curves, captions, table)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        """An answer to a held-out prompt."""
        split = dataset.test or dataset.validation or dataset.train
        prompt, answer, own = (textwrap.indent(text, "  ") for text in answered(run, split.turns(1)[0]))
        lines = ["a dialogue:", prompt, "the model's answer:", answer, "the dialogue's own:", own]
        return "\n".join([*lines, f"use it: python -m zoo chat {workdir}"])


def answered(run: Run, turn: Any) -> tuple[str, str, str]:
    """The text of a prompt, the model's most probable answer to it, and that of the dialogue."""
    inputs: Any = run.inputs
    answer = zoo.generate(run, np.asarray(turn.prompt), length=LENGTH, temperature=0)
    return inputs.decode(turn.prompt).rstrip(), answer, inputs.decode(turn.answer)
