"""A run folder read back: `zoo.load(folder)` gives model, variables and inputs, with no script.

    config.json              what was trained: model (name and arguments), inputs, the recipe's settings
    checkpoints/STEP/        Orbax items `model`, `ema`, `optimizer`, and `meta`: metrics and a digest of every array
    export/                  config.json, model.safetensors: what people share; readable without Orbax

The folder may belong to a finished, a running or a killed run; it is only read.
"""

import contextlib
import functools
import hashlib
import logging
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from zoo.errors import ZooError
from zoo.files import read_json
from zoo.inputs import Inputs, inputs_from_json
from zoo.registry import PRETRAINED, abstract_variables, create_model, list_models, model_info
from zoo.weights import load_weights

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


class Run(NamedTuple):
    """A trained model: `model.apply(variables, inputs.encode(raw)[None])`."""

    model: nn.Module
    variables: Mapping[str, Any]
    inputs: Inputs


class BrokenCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written; the message says why, in a line."""


def load_pretrained(name: str, overrides: Mapping[str, Any]) -> Run:
    """The weights that come with the zoo under a model's name; ZooError, with the names that have some, if none do."""
    path = pretrained_file(name)
    config = read_config(path.parent)
    model, inputs = create_model(name, **{**config["model"]["args"], **overrides}), inputs_from_json(config["inputs"])
    return Run(model, load_weights(model, path, inputs.shape), inputs)


def pretrained_file(name: str) -> pathlib.Path:
    """The `.safetensors` that comes with the zoo for a model's name; its config.json lies beside it."""
    model_info(name)
    path = PRETRAINED / name / "model.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(found.parent.name for found in PRETRAINED.glob("*/model.safetensors"))) or "none"
        raise ZooError(f"the zoo has no weights of {name}; it has those of: {there}")
    return path


def load(folder: str | pathlib.Path, step: str | int = "best", ema: bool | None = None) -> Run:
    """Model, variables and inputs of a run folder, of an `export/` folder alone, or of a model's name.

    A name (where no folder is called so) stands for the weights that come with the zoo.

    `step` is "best" (by the run's validation metric), "last", or a number. `ema` asks for the averaged weights or the
    plain ones; None takes the averaged where the run kept them. ZooError where the folder is no run, holds no such
    step, or its checkpoint is damaged (for "best" and "last": every one is).
    """
    if not pathlib.Path(folder).exists() and str(folder) in list_models():
        return load_pretrained(str(folder), {})
    folder = pathlib.Path(folder)
    config = read_config(folder)
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
                raise ZooError(f"{str(folder)!r} kept no averaged weights; leave ema out")
            return Run(model, read_arrays(checkpoints[number], item, template, meta), inputs)
        except BrokenCheckpoint as error:
            problems.append(f"step {number}: {error}")
    if set(step_folders(folder / "checkpoints")) != set(checkpoints):  # a running run replaced them meanwhile
        return load(folder, step, ema)
    raise ZooError(f"no readable checkpoint in {str(folder)!r}: {'; '.join(problems)}")


def described(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    """The model and the inputs of a config.json, and the shapes of the model's variables."""
    try:
        model: nn.Module = create_model(config["model"]["name"], **config["model"]["args"])
        inputs = inputs_from_json(config["inputs"])
        return model, inputs, abstract_variables(model, inputs.example())
    except ZooError:
        raise
    except Exception as error:  # fields of the right type that make no model
        raise ZooError(f"{str(folder)!r} describes a model that cannot be made ({_line(error)})") from None


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The run's config.json; ZooError where the folder is not a run's or the file is damaged."""
    path = folder / "config.json"
    if not path.is_file():
        raise ZooError(f"{str(folder)!r} is not a run folder: it has no config.json")
    try:
        config = read_json(path)
        if not isinstance(config["model"]["name"], str) or not isinstance(config["model"]["args"], dict):
            raise TypeError("its model is not a name with arguments")
        if reserved := {"name", "pretrained"} & config["model"]["args"].keys():
            raise TypeError(f"its model has no field {min(reserved)}")
        config["inputs"]["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{str(path)!r} describes no run: {error!r:.120}") from None
    return config


def step_folders(checkpoints: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finished checkpoints by step (Orbax renames a folder when it is whole)."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return {int(path.name): path for path in sorted(found) if _STEP.fullmatch(path.name) and path.is_dir()}


def meta_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where Orbax's JSON handler writes the item `meta`; read without it, which knows no bounds."""
    return checkpoint / "meta" / "metadata"


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The item `meta`: `score` (higher is better, or None), `digests` by item and path."""
    try:
        meta = read_json(meta_file(checkpoint))
        if not isinstance(meta["digests"]["model"], dict) or not all(
            isinstance(d, dict) for d in meta["digests"].values()
        ):
            raise TypeError("no digests")
        if not isinstance(meta.get("score"), float | int | None):
            raise TypeError("its score is no number")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"its meta is unreadable ({_line(error)})") from None


def read_arrays(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item in the structure of `template`, as `restored` reads it, and every digest checked."""
    arrays = restored(checkpoint, item, template, meta)
    check_digests(item, arrays, meta)
    return arrays


def restored(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item in the structure of `template`: NumPy arrays, but where it names a sharding, where they lie then.

    Of several processes each reads by itself. BrokenCheckpoint where it cannot be read, ZooError where the checkpoint
    is of another model.
    """
    import orbax.checkpoint as ocp

    quiet_orbax()
    template_leaves, expected = named_leaves(template), meta["digests"].get(item, {})
    strangers = set(template_leaves) ^ set(expected)
    if strangers:
        raise ZooError(f"{str(checkpoint)!r} is of another model: {item} differs in {min(strangers)}")

    def wish(leaf: Any) -> ocp.RestoreArgs:
        if getattr(leaf, "sharding", None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    wanted = jax.tree.map(wish, template)
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone) as reader:
            path = (checkpoint / item).absolute()
            if (about := reader.metadata(path).item_metadata) is None:
                raise ValueError("a file is damaged or missing")
            stored = jax.tree.leaves(about.tree)
            numbers = sum(math.prod(array.shape) for array in stored if getattr(array, "shape", None))
            if numbers > 2 * (most := sum(math.prod(leaf.shape) for leaf in template_leaves.values())) + 1:
                raise ValueError(f"it holds {numbers:,} numbers, the model {most:,}")
            arrays = reader.restore(path, args=ocp.args.PyTreeRestore(item=template, restore_args=wanted))
    except Exception as error:
        raise BrokenCheckpoint(f"its {item} is unreadable ({_line(error)})") from None
    for name, leaf in named_leaves(arrays).items():
        if np.shape(leaf) != template_leaves[name].shape:
            shapes = f"{np.shape(leaf)}, not {template_leaves[name].shape}"
            raise ZooError(f"{str(checkpoint)!r} is of another model: {name} is {shapes}")
    return arrays


def check_digests(item: str, arrays: Any, meta: Mapping[str, Any]) -> None:
    """BrokenCheckpoint unless every digest agrees (Orbax casts to another dtype in silence; the digest then differs).
    Of arrays that several processes hold, all must ask."""
    found = digests(arrays)
    changed = [name for name, digest in meta["digests"][item].items() if found[name] != digest]
    if changed:
        raise BrokenCheckpoint(f"its {item} is not what was saved, first in {changed[0]}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, `params/conv1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def host_array(leaf: Any) -> np.ndarray:
    """A copy in this process's memory. One whose parts several processes hold is gathered, so all must ask."""
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return np.array(leaf)
    if leaf.is_fully_replicated:
        return np.array(leaf.addressable_data(0))
    if not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    array = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:  # np.array(leaf) would leave a copy of the whole with the leaf
        array[shard.index] = shard.data
    return array


def digests(tree: Any) -> dict[str, str]:
    """A SHA-256 of every array's dtype, shape and bytes, by path; of one at a time in this process's memory."""
    return {name: digest_of(host_array(leaf)) for name, leaf in named_leaves(tree).items()}


def digest_of(array: np.ndarray) -> str:
    """A SHA-256 of an array's dtype, shape and bytes, of which it makes no copy where they lie in a row."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def _candidates(checkpoints: Mapping[int, pathlib.Path], step: str | int) -> list[int]:
    """The steps to try, the wanted one first."""
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


@functools.cache
def quiet_orbax() -> None:
    """Keeps Orbax's pages of tracebacks off the terminal, from here on; what matters is raised.

    When one read or write of several fails, that one is raised. The others are left unawaited, and Python complains of
    each when it collects it, at any later time.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    shown = logging.Formatter().format  # with the traceback; tensors stored as Orbax stores them are OCDBT's
    logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|OCDBT", shown(record)))
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        code = getattr(args.object, "cr_code", None)  # a coroutine's
        closed = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed"
        if not closed and (code is None or "orbax" not in code.co_filename):
            before(args)

    sys.unraisablehook = hook


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
