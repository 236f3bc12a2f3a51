"""What a run with `model.weights` starts from: the weights, and with them their model's fields and their inputs."""

import dataclasses
import json
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

import zoo
from train.config import Config, ModelConfig
from train.data.labels import plain
from train.data.source import Dataset, Source
from zoo.arrays import named_leaves
from zoo.errors import ZooError
from zoo.inputs import ImageInputs, Inputs, PairInputs, TextInputs
from zoo.inputs.text import TOKENIZERS, read_tokenizer
from zoo.run import Origin, origin_of, public_weights, read_config

BODY = ["backbone", "body"]  # where a model keeps its backbone
BY_DATA = {"num_classes", "source_vocab_size"}  # fields that follow from the data and the task, not from the weights


def origin(settings: ModelConfig) -> Origin:
    """Where `model.weights` come from. ZooError where they are those of another model."""
    weights = str(settings.weights)
    found = origin_of(public_weights(settings.name) if weights == "pretrained" else weights, settings.name)
    other = found.name and zoo.model_info(found.name).module_class is not zoo.model_info(settings.name).module_class
    if other and not of_backbone(settings, found):
        raise ZooError(f"the weights {weights!r} are of {found.name}, not of {settings.name}")
    return found


def of_backbone(settings: ModelConfig, found: Origin) -> bool:
    """Whether the weights are those of a classifier on which the model, such as a detector, can be built."""
    has = "backbone_name" in zoo.model_info(settings.name).fields
    return has and found.name is not None and "backbone_name" not in zoo.model_info(found.name).fields


def decided(settings: ModelConfig, found: Origin) -> dict[str, Any]:
    """The fields of the model that follow from its weights."""
    fields = {name: value for name, value in found.args.items() if name not in BY_DATA}
    return {"backbone_name": found.name, "backbone_args": fields} if of_backbone(settings, found) else fields


def with_backbone(variables: Any, found: Origin) -> Any:
    """Drawn variables with those of a classifier in place of its backbone's; ZooError where one is not in it."""
    shape = found.inputs.shape if found.inputs is not None else zoo.model_info(str(found.name)).input_shape
    loaded = dict(named_leaves(found.variables(zoo.create_model(str(found.name), **found.args), shape)))

    def placed(path: Any, leaf: Any) -> Any:
        collection, *names = (key.key for key in path)
        if names[: len(BODY)] != BODY:
            return leaf
        name = "/".join([collection, *names[len(BODY) :]])
        if name not in loaded or loaded[name].shape != leaf.shape:
            raise ZooError(f"the weights of {found.name} have no {name} of shape {leaf.shape}")
        return jax.device_put(np.asarray(loaded[name], leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(placed, variables)


def without_defaults(config: Config, default: Config) -> Config:
    """A recipe's settings with the user's flags, without the recipe's own model.args that the weights decide."""
    if config.model.weights is None or config.model.args != default.model.args:
        return config
    fields = decided(config.model, origin(config.model))
    args = {name: value for name, value in config.model.args.items() if name not in fields}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, args=args))


def model_fields(config: Config) -> dict[str, Any]:
    """The fields of the model that `model.weights` are of; of a run that resumes, those that it began with."""
    if config.model.weights is None:
        return {}
    workdir = pathlib.Path(config.workdir).expanduser()
    resumes = (workdir / "config.json").is_file()
    if not resumes:
        return decided(config.model, origin(config.model))
    return {name: value for name, value in read_config(workdir)["model"]["args"].items() if name not in BY_DATA}


def load_data(config: Config, stored: Inputs | None, **resumed: Any) -> Dataset:
    """The data of a run: brought to the inputs `stored` by a run that resumes, else to those of `model.weights`.

    `resumed` are further arguments of `Source.load` for a run that resumes.

    ZooError where texts would get another vocabulary than that of the weights, or it is not known.
    """
    shape = zoo.model_info(config.model.name).input_shape
    if stored is not None or config.model.weights is None:
        return config.data.load(shape, stored, **resumed)
    found = origin(config.model)
    weights = f"model.weights {config.model.weights!r}"
    if found.inputs is None:
        check_known(config.data, config.model.name, weights)
        if np.dtype(zoo.model_info(config.model.name).input_dtype).kind != "i":
            warnings.warn(f"{weights} name no mean and deviation; the data's own normalise them", stacklevel=2)
        return config.data.load(shape)
    inputs = _for_data(config.data, found.inputs)
    if isinstance(inputs, TextInputs):
        check_tokenizer(config.data, inputs, weights)
    free = dataclasses.replace(inputs, labels=()) if inputs.labels else inputs  # type: ignore[type-var]
    dataset = config.data.load(inputs.shape, free)
    theirs, ours = ([plain(label) for label in of.labels] for of in (inputs, dataset.inputs))
    if theirs != ours and sorted(theirs) == sorted(ours):
        dataset = config.data.load(inputs.shape, inputs)  # in the order of the weights' own head
    if isinstance(inputs, TextInputs) and not same_vocabulary(inputs, dataset.inputs):
        raise ZooError(f"{dataset.name} has another vocabulary than {weights}; it must take the `inputs` of `load`")
    if of_backbone(config.model, found):
        return dataclasses.replace(dataset, notes=(*dataset.notes, f"the backbone begins with {weights}"))
    return dataclasses.replace(dataset, notes=(*dataset.notes, f"{_described(inputs)}, as {weights} were trained on"))


def check_known(data: Source, name: str, weights: str) -> None:
    """ZooError where a text model's weights, whose vocabulary is not known, would get one learned from the data."""
    if np.dtype(zoo.model_info(name).input_dtype).kind != "i":
        return
    settings = [n for n in ("tokenizer", "source_tokenizer", "target_tokenizer") if hasattr(data, n)]
    for setting in settings:
        if (given := getattr(data, setting)) in TOKENIZERS and given != "byte":
            raise ZooError(
                f"{weights} have no vocabulary beside them, and data.{setting.replace('_', '-')} {given} would learn "
                "another one: give the run folder, or the tokenizer.json that they were trained with"
            )
    given = ", ".join(repr(getattr(data, setting)) for setting in settings) or type(data).__name__
    warnings.warn(f"{weights} have no vocabulary beside them; they must have been trained with {given}", stacklevel=3)


def check_tokenizer(data: Source, inputs: TextInputs, weights: str) -> None:
    """ZooError where the user gives a tokenizer.json with another vocabulary than that of the weights."""
    given = getattr(data, "tokenizer", None)
    if given is None or given in TOKENIZERS:  # a kind to learn, which the vocabulary of the weights replaces
        return
    if not same_vocabulary(inputs, read_tokenizer(given, inputs.length)):
        raise ZooError(f"data.tokenizer {given!r} has another vocabulary than {weights}; leave it out")


def same_vocabulary(a: Any, b: Any) -> bool:
    """Whether two inputs give the same tokens to the same text."""
    return isinstance(b, TextInputs) and (a.tokenizer, _rules(a)) == (b.tokenizer, _rules(b))


def _rules(inputs: TextInputs) -> Any:
    """A vocabulary without what `TextInputs.batch` does itself."""
    if inputs.tokenizer in ("char", "byte"):
        return inputs.vocabulary
    return {k: v for k, v in json.loads(inputs.vocabulary).items() if k not in ("version", "truncation", "padding")}


def _for_data(data: Source, inputs: Inputs) -> Inputs:
    """The inputs of weights with the lengths that the data's settings ask for."""
    if isinstance(inputs, TextInputs):
        return dataclasses.replace(inputs, length=getattr(data, "context", inputs.length))
    if isinstance(inputs, PairInputs):
        asked = {n: getattr(data, f"{n}_length", None) or getattr(inputs, n).length for n in ("source", "target")}
        sides = {n: dataclasses.replace(getattr(inputs, n), length=length) for n, length in asked.items()}
        return dataclasses.replace(inputs, **sides)
    return inputs


def _described(inputs: Inputs) -> str:
    if isinstance(inputs, TextInputs):
        return f"texts have the {inputs.vocab_size:,} tokens of a {inputs.tokenizer} vocabulary"
    if isinstance(inputs, ImageInputs):
        size = "x".join(map(str, inputs.shape))
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (inputs.mean, inputs.std))
        return f"images are {size}, normalised by mean {mean} and deviation {std}"
    return f"{inputs.kind}s are read"
