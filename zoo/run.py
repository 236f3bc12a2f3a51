"""Loading a trained model: `zoo.load(X)` gives model, variables and inputs, without the training script.

X is a folder or file, a repository of the Hub, or a registered model with public weights. A run's folder has

    config.json              what was trained: model (name and arguments), inputs, the recipe's settings
    checkpoints/STEP/        see `zoo.checkpoints`
    export/                  config.json, model.safetensors: small, to share; readable without Orbax

The run may be finished, still running or killed; its folder is only read. Folders and repositories of Hugging Face's
transformers and of timm are read as far as their files say how the model reads its data.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jax.sharding import Mesh

from zoo import hub
from zoo.checkpoints import BrokenCheckpoint, read_arrays, read_meta, step_folders
from zoo.errors import ZooError, first_line
from zoo.files import read_json
from zoo.inputs import ImageInputs, Inputs, inputs_from_json
from zoo.registry import PRETRAINED, abstract_variables, create_model, list_models, model_info
from zoo.weights import fitted, gguf, load_weights, timm
from zoo.weights.files import config_inside
from zoo.weights.huggingface import folder as huggingface
from zoo.weights.huggingface.inputs import image_inputs, inputs_of


class Run(NamedTuple):
    """A trained model: `model.apply(variables, inputs.encode(raw)[None])`."""

    model: nn.Module
    variables: Mapping[str, Any]
    inputs: Inputs


class Origin(NamedTuple):
    """A folder or file of weights, and what the files beside them say of it: the model, its fields, its inputs."""

    path: pathlib.Path
    maker: str  # "run", "Hugging Face", "timm", "GGUF", "file", or "" where no config describes the weights
    name: str | None = None
    args: Mapping[str, Any] = {}
    inputs: Inputs | None = None

    def variables(
        self, model: nn.Module, shape: tuple[int, ...], draw: bool = True, mesh: Mesh | None = None
    ) -> Mapping[str, Any]:
        """The weights as the variables of a model for inputs of `shape`; see `zoo.load_weights`."""
        if self.path.is_dir() and self.maker == "run":
            return fitted(model, load(self.path).variables, shape, repr(str(self.path)), draw, mesh)
        if self.maker == "GGUF":
            return fitted(model, gguf.loaded(self.path, {})[1], shape, repr(str(self.path)), draw, mesh)
        path = huggingface.weights_file(self.path) if self.path.is_dir() else self.path
        return load_weights(model, path, shape, draw=draw, mesh=mesh)


def origin_of(weights: str | os.PathLike, name: str | None = None) -> Origin:
    """The origin of a model's weights: a folder of a run, an export, Hugging Face's or timm's, a file, which may lie in
    one of those, a GGUF file, a repository of the Hub (`hf:ORG/NAME`), or a registered model with public weights.
    `name` is the registered model that a file is for. ZooError for anything else."""
    path = located(weights)
    if path.is_dir():
        return _origin(path)
    if path.suffix == ".gguf":
        return Origin(path, "GGUF", *gguf.described(path))
    if path.name.startswith("model") and (path.parent / "config.json").is_file():
        with contextlib.suppress(ZooError):  # of a model that the zoo does not have; the file may be
            return _origin(path.parent)._replace(path=path)
    if name is None and (inside := config_inside(path)) is not None:
        config = _checked(inside, path)
        model, data = config["model"], config.get("inputs")
        return Origin(path, "file", model["name"], model["args"], None if data is None else inputs_from_json(data))
    shape = model_info(name).input_shape if name else ()
    inputs = image_inputs(path.parent, (shape[0], shape[1], shape[2]), ()) if len(shape) == 3 else None
    return Origin(path, "", inputs=inputs)


def maker_of(folder: pathlib.Path) -> str:
    """What wrote a folder's config.json: "timm", "Hugging Face", or else "run", without a look at the rest."""
    return _maker(_about(folder))


def _about(folder: pathlib.Path) -> dict[str, Any]:
    about: Any = None
    with contextlib.suppress(OSError, ValueError):  # which `read_config` reports
        about = read_json(folder / "config.json")
    return about if isinstance(about, dict) else {}


def _maker(about: dict[str, Any]) -> str:
    if timm.is_timm(about) and not {"model", "inputs"} <= about.keys():
        return "timm"
    theirs = "model_type" in about or "architectures" in about
    return "Hugging Face" if theirs and not {"model", "inputs"} <= about.keys() else "run"


def _origin(folder: pathlib.Path) -> Origin:
    about = _about(folder)
    maker = _maker(about)
    if maker == "timm":
        return Origin(folder, maker, *timm.described(folder, about))
    if maker == "Hugging Face":
        name, fields = huggingface.read_config(folder)
        return Origin(folder, maker, name, fields, inputs_of(folder, name, fields))
    config = read_config(folder)
    return Origin(folder, maker, config["model"]["name"], config["model"]["args"], described(folder, config)[1])


def located(weights: str | os.PathLike) -> pathlib.Path:
    """The local folder or file of weights: a path, a repository of the Hub as `zoo.hub.address_of` reads it, or the
    name of a model whose weights come with the zoo or are public. What is on the Hub is downloaded.

    ZooError for anything else, and as `zoo.hub.fetch`.
    """
    text = str(weights)
    if (path := hub.local(weights, _origin)) is not None:
        return path
    if text in list_models():
        return public_weights(text)
    near = difflib.get_close_matches(text, [name for name in list_models() if has_weights(name)], n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ZooError(
        f"{text!r} does not exist: give a .safetensors file, the folder of a run, an export or a hub, hf:ORG/NAME, or "
        f"a model with public weights{hint}"
    )


def has_weights(name: str) -> bool:
    """Whether the weights of a registered model come with the zoo or are public."""
    info = model_info(name)
    return bool(info.pretrained or info.sources)


def public_weights(name: str) -> pathlib.Path:
    """The folder of the weights that come with the zoo for a model's name, else of the first of its public sources.

    ZooError for an unknown name, and for a model without weights.
    """
    info = model_info(name)
    if info.pretrained:
        return PRETRAINED / name
    if not info.sources:
        raise ZooError(f"there are no public weights of {name}; python -m zoo list --weights has those that there are")
    return hub.fetch(hub.Address(info.sources[0].repository), _origin)


def load(
    name_or_folder: str | os.PathLike, /, step: str | int = "best", ema: bool | None = None, **overrides: Any
) -> Run:
    """Model, variables and inputs of a run folder, of an `export/` folder alone, of a Hugging Face folder with a
    tokenizer.json or preprocessor_config.json, of a timm folder, of a `.safetensors` file in one of these, of a
    `.gguf` file, of a repository of the Hub (`hf:ORG/NAME`, `hf:ORG/NAME@REVISION`, `hf:ORG/NAME/FILE.gguf`; `hf:` may
    be left out), or of a registered model whose weights come with the zoo or are public (`zoo list --weights`).

    `step` is "best" (by the run's validation metric), "last", or a number. `ema` chooses the averaged weights (True) or
    the plain ones (False); None takes the averaged ones where the run kept them. `overrides` are fields of the model,
    such as dtype, remat or num_classes: with another number of classes the head is drawn anew, with a warning.

    ZooError where the folder is not a run's or has no such step, where its checkpoint is damaged (for "best" and
    "last": every one is), and for overrides that do not fit the model or its weights.
    """
    folder = located(name_or_folder)
    if folder.is_file() or maker_of(folder) != "run":
        if step not in ("best", "last") or ema:
            raise ZooError(f"{str(folder)!r} has one set of weights: leave step and ema out")
        if folder.suffix == ".gguf":
            return Run(*gguf.loaded(folder, overrides))
        return _published(origin_of(folder), overrides)
    config = read_config(folder)
    run = _stored(folder, config, step, ema)
    if not overrides:
        return run
    model = create_model(config["model"]["name"], **{**config["model"]["args"], **overrides})
    return Run(model, fitted(model, run.variables, run.inputs.shape), run.inputs)


def _published(origin: Origin, overrides: Mapping[str, Any]) -> Run:
    """The model of a folder of Hugging Face's or timm's, or of a file. Without overrides its head must be in it."""
    if origin.name is None and origin.path.is_file():
        raise ZooError(
            f"{str(origin.path)!r} has no config inside, and no config.json beside it, that says of which model it is; "
            "zoo.load_weights(NAME, FILE) loads it"
        )
    if origin.inputs is None and origin.maker == "file":
        given = "".join(f", {name}={value!r}" for name, value in origin.args.items())
        raise ZooError(
            f"{str(origin.path)!r} does not say how its model reads data; "
            f"zoo.load_weights({origin.name!r}, FILE{given}) loads it"
        )
    if origin.inputs is None or origin.name is None:
        raise ZooError(
            f"{str(origin.path)!r} is a {origin.maker} folder that does not say how its model reads data (a "
            "tokenizer.json or a preprocessor_config.json); zoo.from_pretrained gives model and variables"
        )
    model, inputs = create_model(origin.name, **{**origin.args, **overrides}), origin.inputs
    if isinstance(inputs, ImageInputs) and "image_size" in overrides:
        side = overrides["image_size"]
        inputs = dataclasses.replace(inputs, shape=(side, side, inputs.shape[-1]))
    return Run(model, origin.variables(model, inputs.shape, draw=bool(overrides)), inputs)


def _stored(folder: pathlib.Path, config: Mapping[str, Any], step: str | int, ema: bool | None) -> Run:
    """The model as the folder describes it, without overrides."""
    model, inputs, template = described(folder, config)
    checkpoints = step_folders(folder / "checkpoints")
    if not checkpoints:
        exported = folder / "model.safetensors", folder / "export" / "model.safetensors"
        for path in exported:
            if path.is_file():
                if step not in ("best", config.get("step")) or ema not in (None, config.get("ema")):
                    raise ZooError(f"{str(folder)!r} holds only the weights of step {config.get('step')}")
                return Run(model, load_weights(model, path, inputs.shape), inputs)
        raise ZooError(f"{str(folder)!r} has no checkpoint yet")
    problems = []
    for number in _candidates(checkpoints, step):
        try:
            meta = read_meta(checkpoints[number])
            item = "ema" if "ema" in meta["digests"] and ema is not False else "model"
            if ema and item != "ema":
                raise ZooError(f"{str(folder)!r} has no averaged weights; leave ema out")
            return Run(model, read_arrays(checkpoints[number], item, template, meta), inputs)
        except BrokenCheckpoint as error:
            problems.append(f"step {number}: {error}")
    if set(step_folders(folder / "checkpoints")) != set(checkpoints):  # the run, still going, replaced them meanwhile
        return _stored(folder, config, step, ema)
    raise ZooError(f"no readable checkpoint in {str(folder)!r}: {'; '.join(problems)}")


def described(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    """The model and inputs of a config.json, and the shapes of the model's variables."""
    try:
        model: nn.Module = create_model(config["model"]["name"], **config["model"]["args"])
        inputs = inputs_from_json(config["inputs"])
        return model, inputs, abstract_variables(model, *inputs.example())
    except ZooError:
        raise
    except Exception as error:  # fields of valid types that make no valid model
        raise ZooError(f"{str(folder)!r} describes a model that cannot be made ({first_line(error)})") from None


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """A run's config.json. ZooError if the folder is not a run folder or the file is damaged."""
    path = folder / "config.json"
    if not path.is_file():
        raise ZooError(f"{str(folder)!r} is not a run folder: it has no config.json")
    try:
        config = _checked(read_json(path), path)
        config["inputs"]["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{str(path)!r} describes no run: {error!r:.120}") from None
    return config


def _checked(config: Any, path: pathlib.Path) -> dict[str, Any]:
    """A config with a model's name and args; ZooError without."""
    try:
        if not isinstance(config["model"]["name"], str) or not isinstance(config["model"]["args"], dict):
            raise TypeError("model must have a name and args")
    except (KeyError, TypeError) as error:
        raise ZooError(f"{str(path)!r} describes no run: {error!r:.120}") from None
    return config


def _candidates(checkpoints: Mapping[int, pathlib.Path], step: str | int) -> list[int]:
    """The steps to try, in order of preference."""
    if isinstance(step, int):
        if step not in checkpoints:
            raise ZooError(f"no checkpoint of step {step}; there are {', '.join(map(str, sorted(checkpoints)))}")
        return [step]
    newest_first = sorted(checkpoints, reverse=True)
    if step == "last":
        return newest_first
    if step != "best":
        raise ZooError(f'step must be "best", "last" or a number, not {step!r}')
    scores = {}
    for number in newest_first:
        with contextlib.suppress(BrokenCheckpoint):
            score = read_meta(checkpoints[number]).get("score")
            scores[number] = -math.inf if score is None else score
    return sorted(newest_first, key=lambda number: (scores.get(number, -math.inf), number), reverse=True)
