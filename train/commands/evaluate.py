"""python -m train evaluate RUN_OR_NAME: metrics of a model on a split, every example counted once."""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tyro

import zoo
from train import recipes
from train.config import ModelConfig, read_settings
from train.data.images import ImageData
from train.data.labelled_text import LabelledTextData
from train.data.pairs import PairData
from train.data.source import Dataset, Source
from train.data.text import TextData
from train.evaluate import Evaluator
from train.first_weights import check_known, origin
from train.records import shown
from train.sharding import make_layout
from train.tasks.classification import Classification
from train.tasks.language_model import LanguageModel
from train.tasks.masked_language_model import MaskedLanguageModel
from train.tasks.task import Task
from train.tasks.translation import Translation
from zoo.errors import ZooError
from zoo.inputs import ImageInputs, Inputs
from zoo.partition import rules_of
from zoo.registry import list_models
from zoo.run import Run, maker_of, origin_of, read_config

OF_DATA = ("--data.path", "--data.dir", "--data.tokenizer")  # flags whose values are folders, but not of models


@dataclasses.dataclass(frozen=True)
class Definitions:
    """What must be known before a run's settings are read."""

    # a recipe file that defines the run's own task, source or model
    recipe: str | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Definitions):
    """Evaluates a run folder, a hub's folder, or a registered model with weights, on a data set."""

    target: tyro.conf.Positional[str]  # a folder of a run, an export, Hugging Face's or timm's, or a model's name
    weights: str | None = None  # .safetensors, or a folder with it, for a model given by name
    # of the images that weights were trained on, by channel, in units of 0 to 1, where no file beside them says so:
    # --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 for torchvision's
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    split: Literal["test", "validation", "train"] = "test"  # the split to evaluate on; train is all of it
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
    places = [arg for before, arg in itertools.pairwise(["", *args]) if before not in OF_DATA]
    folders = (pathlib.Path(arg).expanduser() for arg in places)
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    default = dataclasses.replace(default, **_kinds(folder, next((arg for arg in args if arg in list_models()), None)))
    config = tyro.cli(EvaluateConfig, args=args, default=default, prog=prog, config=options)
    if (
        config.data == default.data
        and folder == pathlib.Path(config.target).expanduser()
        and (maker := maker_of(folder)) != "run"
    ):
        raise ZooError(f"{str(folder)!r} is a {maker} folder, which names no data: add --data.name or --data.path")
    metrics, counted = evaluate_target(config)
    print(f"{config.target} on {config.data.label} {config.split}: {shown(metrics)} ({counted})")


def _kinds(folder: pathlib.Path | None, name: str | None) -> dict[str, Any]:
    """Data and task: a run's own, or those of the kind that the model of a folder, or of a name, is for."""
    args: Mapping[str, Any] = {}
    if folder is not None:
        stored: Mapping[str, Any] = {}
        with contextlib.suppress(ZooError):  # not of a run
            stored = read_config(folder)
        if "config" in stored:
            settings = read_settings(stored["config"])
            return {"data": settings.data, "task": settings.task}
        found = origin_of(folder)
        name, args = found.name, found.args
    if name is None or np.dtype((info := zoo.model_info(name)).input_dtype).kind != "i":
        return {}
    if "source" in info.more_inputs:
        return {"data": PairData(), "task": Translation()}
    if args.get("output") == "tokens":
        return {"data": TextData(), "task": MaskedLanguageModel()}
    if "num_classes" in info.fields:
        return {"data": LabelledTextData(), "task": Classification()}
    return {"data": TextData(), "task": LanguageModel()}


def evaluate_target(config: EvaluateConfig) -> tuple[dict[str, float], str]:
    """The metrics of a run, or of a named model with weights, on a split, and what was counted.

    ZooError where model and data do not go together.
    """
    if config.batch_size < 1:
        raise ZooError(f"batch-size must be at least 1, not {config.batch_size}")
    config.data.check()
    config.task.check()
    if config.split == "train" and hasattr(config.data, "validation_fraction"):
        whole: Any = dataclasses.replace(config.data, validation_fraction=0.0)  # type: ignore[call-arg]
        config = dataclasses.replace(config, data=whole)
    folder = pathlib.Path(config.target).expanduser().is_dir()
    if config.weights is not None and folder:
        raise ZooError("weights go with a model's name; a folder has its own")
    if config.weights is not None:
        run, dataset = _with_weights(config, config.weights)
    else:
        if not folder and "/" in config.target:
            raise ZooError(f"no run folder {config.target!r}")
        if not folder and zoo.model_info(config.target).pretrained is None:
            raise ZooError(f"{config.target} is a model's name; add --weights FILE, or give a run folder")
        run = zoo.load(config.target)
        dataset = _data_for(config, run.inputs, maker_of(pathlib.Path(config.target).expanduser()) if folder else "run")
    for note in dataset.notes:
        print(note)
    model, variables, inputs = run
    config.task.check_data(dataset)
    config.data.check_model(type(model))
    layout = make_layout(config.parallel, config.batch_size, 1, rules=rules_of(model))
    evaluator = Evaluator(config.task, model, inputs, layout, config.batch_size)
    split = dataset.split(config.split)
    return evaluator(layout.put_state(variables), split, final=True, passing=_passing), split.described


def _with_weights(config: EvaluateConfig, weights: str) -> tuple[Run, Dataset]:
    """A registered model with weights, and the data in the form of its inputs. The head must be in the weights."""
    name, found = config.target, origin(ModelConfig(config.target, weights=weights))
    known = found.inputs
    if known is None:
        check_known(config.data, name, f"weights {weights!r}")
        shape = zoo.model_info(name).input_shape
        dataset = config.data.load(shape)
        inputs = _normalised(config, dataset.inputs, weights)
        if inputs.labels:
            dataset = dataclasses.replace(dataset, notes=(*dataset.notes, _by_number(inputs.labels)))
    else:
        if config.mean is not None or config.std is not None:
            raise ZooError(f"the files beside {weights!r} give its mean and std; leave --mean and --std out")
        dataset, inputs = _data_for(config, known, found.maker), known
    fields = {"num_classes": len(inputs.labels)} if inputs.labels else {}
    model = zoo.create_model(name, **{**inputs.model_args(), **found.args, **fields})
    return Run(model, found.variables(model, inputs.shape, draw=False), inputs), dataset


def _normalised(config: EvaluateConfig, inputs: Inputs, weights: str) -> Inputs:
    """The data's inputs with the mean and deviation that the user gives for weights whose own are not known."""
    if inputs.kind not in ("image", "text"):
        raise ZooError(
            f"{weights!r} has no inputs beside it, which {inputs.kind}s need; give the run folder or its export"
        )
    if not isinstance(inputs, ImageInputs):
        return inputs
    if config.mean is None or config.std is None:
        raise ZooError(
            f"{weights!r} does not say how its images were normalised; add --mean and --std, one number per channel "
            "(torchvision's: --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225)"
        )
    return dataclasses.replace(inputs, mean=config.mean, std=config.std)


def _data_for(config: EvaluateConfig, inputs: Inputs, maker: str) -> Dataset:
    """The data, brought to a model's inputs; labels are matched by name, by number where a hub's folder names none."""
    unnamed = [tuple(f"{name}{i}" for i in range(len(inputs.labels))) for name in ("", "LABEL_")]
    if maker != "run" and inputs.labels in unnamed:
        dataset = config.data.load(inputs.shape, dataclasses.replace(inputs, labels=()))  # type: ignore[type-var]
        labels = dataset.inputs.labels
        if len(labels) != len(inputs.labels) and not set(labels) <= set(inputs.labels):
            raise ZooError(f"{dataset.name} has {len(labels)} classes, the model {len(inputs.labels)} without names")
        if len(labels) == len(inputs.labels):
            return dataclasses.replace(dataset, notes=(*dataset.notes, _by_number(labels)))
    dataset = config.data.load(inputs.shape, inputs)
    found = dataset.inputs  # those of a source of the user's own may be others
    if (found.kind, found.labels, found.shape) != (inputs.kind, inputs.labels, inputs.shape):
        raise ZooError(
            f"{dataset.name} has {found.kind}s of {found.shape} with the labels {', '.join(found.labels)!s:.80}; "
            f"{config.target} takes {inputs.kind}s of {inputs.shape} with {', '.join(inputs.labels)!s:.80}"
        )
    return dataset


def _by_number(labels: tuple[str, ...]) -> str:
    names = f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"
    return f"the model's {len(labels)} classes have no names: they are matched to the data's by number ({names})"


def _passing(done: int, total: int) -> None:
    """Shows the progress on a terminal."""
    if sys.stderr.isatty():
        end = "\r" if done + 1 < total else "\r\033[K"
        print(f"evaluating: {done} of {total} batches", end=end, file=sys.stderr, flush=True)
