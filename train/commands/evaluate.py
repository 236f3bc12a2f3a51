"""python -m train evaluate RUN_OR_NAME: metrics of a model on a split, every example counted once."""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

import tyro

import zoo
from train import recipes
from train.config import read_settings
from train.data.images import ImageData
from train.data.source import Source
from train.evaluate import Evaluator
from train.records import shown
from train.sharding import make_layout
from train.tasks.classification import Classification
from train.tasks.task import Task
from zoo.errors import ZooError
from zoo.partition import rules_of
from zoo.run import read_config


@dataclasses.dataclass(frozen=True)
class Definitions:
    """What must be known before a run's settings are read."""

    # a recipe file that defines the run's own task, source or model
    recipe: str | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Definitions):
    """Evaluates a run folder, or a registered model with weights, on a data set."""

    target: tyro.conf.Positional[str]  # a run folder, or a model's name
    weights: str | None = None  # .safetensors for a model given by name
    split: Literal["test", "validation", "train"] = "test"  # the split to evaluate on
    batch_size: int = 256  # examples at a time, over all devices
    parallel: Literal["auto", "jit", "mesh", "pmap"] = "auto"  # as in training
    data: Source = dataclasses.field(default_factory=ImageData)
    task: Task = dataclasses.field(default_factory=Classification)


def evaluate_command(args: list[str]) -> None:
    """Prints the metrics of `python -m train evaluate RUN_OR_NAME ...`; data and task default to the run's own."""
    default, options, prog = EvaluateConfig(""), (tyro.conf.AvoidSubcommands,), "python -m train evaluate"
    asked = [arg for arg in args if arg not in ("-h", "--help")]
    definitions = tyro.cli(Definitions, args=asked, prog=prog, return_unknown_args=True)[0]
    if definitions.recipe is not None:
        recipes.load_recipe(definitions.recipe)
    folder = next((pathlib.Path(arg) for arg in args if (pathlib.Path(arg) / "config.json").is_file()), None)
    stored = read_config(folder) if folder else {}
    if "config" in stored:
        settings = read_settings(stored["config"])
        default = dataclasses.replace(default, data=settings.data, task=settings.task)
    config = tyro.cli(EvaluateConfig, args=args, default=default, prog=prog, config=options)
    metrics, counted = evaluate_target(config)
    print(f"{config.target} on {config.data.label} {config.split}: {shown(metrics)} ({counted})")


def evaluate_target(config: EvaluateConfig) -> tuple[dict[str, float], str]:
    """The metrics of a run, or of a named model with weights, on a split, and what was counted.

    ZooError where model and data do not go together.
    """
    if config.batch_size < 1:
        raise ZooError(f"batch-size must be at least 1, not {config.batch_size}")
    config.data.check()
    config.task.check()
    if pathlib.Path(config.target).is_dir():
        if config.weights is not None:
            raise ZooError("weights go with a model's name; a run folder has its own")
        model, variables, inputs = zoo.load(config.target)
        dataset = config.data.load(inputs.shape, inputs)
    else:
        info = zoo.model_info(config.target)
        if config.weights is None and info.pretrained is None:
            raise ZooError(f"{config.target} is a model's name; add --weights FILE, or give a run folder")
        dataset = config.data.load(info.input_shape)
        if config.weights is None:
            model, variables, inputs = zoo.load(config.target)
        else:
            inputs = dataset.inputs
            args: dict[str, Any] = inputs.model_args()
            model = zoo.create_model(config.target, **args)
            variables = zoo.load_weights(model, config.weights, inputs.shape)
    for note in dataset.notes:
        print(note)
    config.task.check_data(dataset)
    config.data.check_model(type(model))
    found = dataset.inputs
    if type(inputs) is not type(found) or len(inputs.labels) != len(found.labels) or inputs.shape != found.shape:
        raise ZooError(
            f"{dataset.name} has {len(found.labels)} classes of {found.shape} {found.kind}s; {config.target} takes "
            f"{len(inputs.labels)} of {inputs.shape} {inputs.kind}s (data.image-size brings images to a size)"
        )
    layout = make_layout(config.parallel, config.batch_size, 1, rules=rules_of(model))
    evaluator = Evaluator(config.task, model, inputs, layout, config.batch_size)
    split = dataset.split(config.split)
    return evaluator(layout.put_state(variables), split, final=True, passing=_passing), split.described


def _passing(done: int, total: int) -> None:
    """Shows the progress on a terminal."""
    if sys.stderr.isatty():
        end = "\r" if done + 1 < total else "\r\033[K"
        print(f"evaluating: {done} of {total} batches", end=end, file=sys.stderr, flush=True)
