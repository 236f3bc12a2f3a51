"""Metrics of a model on a split, every example counted once; `python -m train evaluate`."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import tyro

import zoo
from train.config import Config, Data, DataConfig, Task, TextConfig, from_json
from train.data import Split, eval_batches, eval_steps, load_dataset
from train.data.pairs import PairSplit
from train.data.text import check_packed
from train.sharding import Layout, make_layout
from train.step import make_eval_step
from train.tasks.classification import Classification
from train.tasks.translation import Translation, quality
from zoo.decode import translate
from zoo.errors import ZooError
from zoo.inputs.pairs import PairInputs
from zoo.partition import rules_of
from zoo.run import Run, read_config


def evaluate(
    eval_step: Any,
    layout: Layout,
    variables: Any,
    split: Split,
    batch_size: int,
    task: Any,
    model: nn.Module,
    passing: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """The task's metrics of placed `variables` over the whole split.

    `passing(done, total)` hears of every batch before it is read; what it raises ends the evaluation.
    """
    totals: dict[str, float] = {}
    waiting: list[Any] = []
    batches = eval_batches(split, batch_size, layout.rows(batch_size))
    carry = layout.put_carry(task.initial_carry(model, batch_size))
    total = eval_steps(split, batch_size)
    for done, batch in enumerate(batches):
        passing(done, total)
        sums, carry = eval_step(variables, carry, layout.put_batch(batch))
        waiting.append(sums)
        if len(waiting) > layout.bounded - 1:
            _add(totals, layout.fetch(waiting.pop(0)))
    for sums in waiting:
        _add(totals, layout.fetch(sums))
    return task.metrics(totals)


def _passing(done: int, total: int) -> None:
    """How far it is, on a terminal."""
    if sys.stderr.isatty():
        end = "\r" if done + 1 < total else "\r\033[K"
        print(f"evaluating: {done} of {total} batches", end=end, file=sys.stderr, flush=True)


def decoded(task: Any, run: Run, split: Split) -> dict[str, float]:
    """The quality of what a translation's run says of a split's sources, nothing told; of other tasks nothing."""
    if not isinstance(task, Translation) or not isinstance(split, PairSplit) or not isinstance(run.inputs, PairInputs):
        return {}
    sources, right = zip(*split.texts, strict=True)
    said = translate(run, sources, beam_size=task.beam_size, length_penalty=task.length_penalty)
    return quality([best.text for best, *_ in said], right, run.inputs.by_character, task.spacy_language)


def _add(totals: dict[str, float], sums: dict[str, Any]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluates a run folder, or a registered model with weights, on a data set."""

    target: tyro.conf.Positional[str]  # a run folder, or a model's name
    weights: str | None = None  # .safetensors for a model given by name
    split: Literal["test", "validation", "train"] = "test"  # the split to read
    batch_size: int = 256  # examples at a time, over all devices
    parallel: Literal["auto", "jit", "mesh", "pmap"] = "auto"  # as in training
    data: Data = dataclasses.field(default_factory=DataConfig)
    task: Task = dataclasses.field(default_factory=Classification)


def evaluate_command(args: list[str]) -> None:
    """Prints the metrics of `python -m train evaluate RUN_OR_NAME ...`; data and task default to the run's own."""
    data: Any = DataConfig()
    task: Any = Classification()
    folder = next((pathlib.Path(arg) for arg in args if (pathlib.Path(arg) / "config.json").is_file()), None)
    stored = read_config(folder) if folder else {}
    if "config" in stored:
        settings = from_json(stored["config"])
        data, task = settings.data, settings.task
    default, options = EvaluateConfig("", data=data, task=task), (tyro.conf.AvoidSubcommands,)
    config = tyro.cli(EvaluateConfig, args=args, default=default, prog="python -m train evaluate", config=options)
    metrics = evaluate_target(config)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    print(f"{config.target} on {config.data.path or config.data.name} {config.split}: {shown}")


def evaluate_target(config: EvaluateConfig) -> dict[str, float]:
    """The metrics of a run, or of a named model with weights, on a split; ZooError where they do not go together."""
    if config.batch_size < 1:
        raise ZooError(f"batch-size must be at least 1, not {config.batch_size}")
    config.data.check()
    if pathlib.Path(config.target).is_dir():
        if config.weights is not None:
            raise ZooError("weights go with a model's name; a run folder has its own")
        model, variables, inputs = zoo.load(config.target)
        dataset = load_dataset(config.data, inputs.shape, inputs)
    else:
        info = zoo.model_info(config.target)
        if config.weights is None and info.pretrained is None:
            raise ZooError(f"{config.target} is a model's name; add --weights FILE, or give a run folder")
        dataset = load_dataset(config.data, info.input_shape)
        if config.weights is None:
            model, variables, inputs = zoo.load(config.target)
        else:
            inputs = dataset.inputs
            args: dict[str, Any] = inputs.model_args()
            model = zoo.create_model(config.target, **args)
            variables = zoo.load_weights(model, config.weights, inputs.shape)
    if isinstance(config.data, TextConfig):
        check_packed(config.data, type(model))
    found = dataset.inputs
    if type(inputs) is not type(found) or len(inputs.labels) != len(found.labels) or inputs.shape != found.shape:
        raise ZooError(
            f"{dataset.name} has {len(found.labels)} classes of {found.shape} {found.kind}s; {config.target} takes "
            f"{len(inputs.labels)} of {inputs.shape} {inputs.kind}s (data.image-size brings images to a size)"
        )
    split = getattr(dataset, config.split)
    if split is None:
        raise ZooError(f"{dataset.name} has no split {config.split} with labels")
    layout, task = make_layout(config.parallel, config.batch_size, 1, rules=rules_of(model)), config.task
    settings = Config("", 1, config.batch_size, data=config.data, task=task)
    step = layout.compile_eval(make_eval_step(settings, layout.adapt(model), inputs, layout.axis_name))
    metrics = evaluate(step, layout, layout.put_state(variables), split, config.batch_size, task, model, _passing)
    return metrics | decoded(task, Run(model, variables, inputs), split)
