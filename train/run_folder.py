"""The run folder: its settings, and what it exports. (Checkpoints: checkpoint.py.)"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import warnings
from typing import Any

import flax
import jax
import numpy as np
import optax

import zoo
from train import processes
from train.config import Config, read_settings
from train.data.source import Dataset
from train.data.unreadable import listed
from train.journal import footprint
from train.records import write_text
from train.settings import differences, to_json
from zoo.checkpoints import step_folders
from zoo.errors import ZooError
from zoo.inputs import Inputs, inputs_from_json
from zoo.run import read_config
from zoo.weights import save_native

# What may differ from the folder's settings on resume.
MAY_CHANGE = (
    "workdir",
    "steps",
    "epochs",
    "hours",
    "parallel",
    "mesh",
    "distributed",
    "resume",
    "profile",
    "keep",
    "patience",
    "data.dir",
    "data.path",  # the content is compared, not its place
    "data.target_path",
    "data.most_unreadable",
    "data.newlines",  # check_data compares the texts
    "log.every",
    "log.tensorboard",
    "log.wandb",
    "log.stall",
    "optimizer.nonfinite",
)

JOURNAL = ("train.log", "status.json")  # all that a run has written if it is killed before its settings are


def take(config: Config) -> tuple[Config, pathlib.Path, tuple]:
    """The settings to run with (on resume the folder's), the run folder and its footprint.

    ZooError for a folder that is not empty without `resume`, that is no run's or leads out of itself, or whose settings
    differ.
    """
    try:
        config = read_settings(json.loads(json.dumps(to_json(config))))  # as a folder holds them: lists, no tuples
    except TypeError as error:
        raise ZooError(f"settings must be plain values (a dtype is a string): {error}") from None
    config.check()
    workdir = pathlib.Path(config.workdir).expanduser().absolute()
    if workdir.exists() and not workdir.is_dir():
        raise ZooError(f"workdir {config.workdir!r} is a file")
    check_within(workdir)
    found = footprint(workdir)
    if not workdir.exists() or all(path.name[0] == "." or path.name in JOURNAL for path in workdir.iterdir()):
        return config, workdir, found
    if not config.resume:
        raise ZooError(f"workdir {config.workdir!r} is not empty: --resume continues it, --workdir DIR names another")
    stored = read_settings(read_config(workdir).get("config"))
    if config.optimizer.decay_steps is None:
        config = _with_decay_steps(config, stored.optimizer.decay_steps or stored.steps)
    changed = {name: pair for name, pair in differences(stored, config).items() if name not in MAY_CHANGE}
    if changed:
        listed = "; ".join(f"{name} was {was!r}, not {now!r}" for name, (was, now) in changed.items())
        raise ZooError(f"on resume only {', '.join(MAY_CHANGE)} may change: {listed}")
    return config, workdir, found


def with_steps(config: Config, workdir: pathlib.Path, dataset: Dataset) -> Config:
    """The settings with `steps` that are the `epochs`, if any, and the end of the schedule fixed, so that a later
    change of the steps does not move it. ZooError for a run that is beyond them already."""
    if config.epochs is not None:
        steps = math.ceil(config.epochs * dataset.train.rows_per_epoch / config.batch_size)
        config = dataclasses.replace(config, steps=steps, epochs=None)
        config.check()
    newest, stored = max(step_folders(workdir / "checkpoints"), default=0), config.steps
    if newest > config.steps:
        raise ZooError(f"{config.workdir!r} is at step {newest} already, after steps {config.steps}")
    if (workdir / "config.json").is_file():
        stored = read_settings(read_config(workdir)["config"]).steps
    end = config.optimizer.decay_steps
    if config.optimizer.schedule != "constant" and end and config.steps > max(end, stored):
        warnings.warn(f"the learning rate is 0 after step {end}, where its schedule ends", stacklevel=2)
    return config if end else _with_decay_steps(config, config.steps)


def check_within(workdir: pathlib.Path) -> None:
    """ZooError for a link that leads out of the folder, and for a pipe: a run writes to files of its own folder."""
    root = os.path.realpath(workdir)
    for parent, folders, files in os.walk(root):
        for path in (pathlib.Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not (end := pathlib.Path(os.path.realpath(path))).is_relative_to(root):
                raise ZooError(f"{str(path)!r} leads out of the run folder, to {str(end)!r}; a run writes to no other")
            if path.is_fifo():  # which to open would wait for whoever is at its other end
                raise ZooError(f"{str(path)!r} is a pipe; a run writes to files")
        folders[:] = [name for name in folders if name != "wandb"]  # W&B's own, which links to its logs elsewhere


def _with_decay_steps(config: Config, end: int) -> Config:
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, decay_steps=end))


def describe(
    config: Config, workdir: pathlib.Path, model_args: dict[str, Any], dataset: Dataset, recipe: str | None
) -> None:
    """Writes config.json: what anyone needs to load or to resume the run."""
    versions = {"python": platform.python_version(), "flaxzoo": zoo.__version__}
    versions |= {module.__name__: module.__version__ for module in (jax, flax, optax, np)}
    about = {
        "model": {"name": config.model.name, "args": model_args},
        "inputs": dataset.inputs.to_json(),
        "data": dataset.content,
        "config": to_json(dataclasses.replace(config, distributed=None)),
        "recipe": recipe,
        "versions": versions,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(about, indent=2) + "\n")


def export(workdir: pathlib.Path, variables: Any, **about: Any) -> None:
    """Writes export/: model.safetensors, which names its model and inputs too, and config.json as `describe_export`
    does."""
    (workdir / "export").mkdir(exist_ok=True)
    config = {key: value for key, value in read_config(workdir).items() if key in ("model", "inputs")}
    save_native(variables, workdir / "export" / "model.safetensors", overwrite=True, config=config)
    describe_export(workdir, **about)


def describe_export(workdir: pathlib.Path, **about: Any) -> None:
    """Writes the config.json of export/: the model, its inputs and `about`."""
    config, folder = read_config(workdir), workdir / "export"
    about = {"model": config["model"], "inputs": config["inputs"], **about}
    write_text(folder / "config.json", json.dumps(about, indent=2) + "\n")


def stored_inputs(workdir: pathlib.Path) -> Inputs | None:
    """The inputs of a run that resumes, so that its vocabulary is not learned again; None for a new run."""
    if not (workdir / "config.json").is_file():
        return None
    return inputs_from_json(read_config(workdir)["inputs"])


def replaced(workdir: pathlib.Path) -> dict[str, Any]:
    """What a source of images needs to know of a run that resumes: the files that it could not read."""
    names = listed(workdir)
    return {"replaced": names} if names else {}


def check_data(workdir: pathlib.Path, dataset: Dataset) -> None:
    """ZooError, in every process, where the data are not those that the resumed run began with, as far as its folder
    records them (early versions recorded only the labels)."""
    wrong = ""
    if (workdir / "config.json").is_file():
        stored = read_config(workdir)
        was = {"labels": stored["inputs"].get("labels", [])}
        now: dict[str, Any] = {"labels": list(getattr(dataset.inputs, "labels", []))}
        if isinstance(content := stored.get("data"), dict):
            was, now = {**was, **content}, {**now, **dataset.content}
        changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        wrong = "; ".join(f"{name}: {was.get(name)!s:.80}, now {now.get(name)!s:.80}" for name in changed[:3])
    if processes.any_says(bool(wrong)):
        wrong = wrong or "another process reads others"
        raise ZooError(f"the data are not those that the run began with ({wrong}); another workdir begins a new one")
