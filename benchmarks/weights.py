"""Times loading a model's weights, beside PyTorch, transformers or timm, and measures its peak memory."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from tyro.conf import Positional

import zoo
from benchmarks.around import drawn, finish, size_mb
from benchmarks.timer import RESULTS, taken_mb, torch_or_none
from train.settings import Arguments
from zoo.errors import ZooError
from zoo.weights import save_weights

Works = dict[str, Callable[[], Any]]
CONTESTANTS = ("ours", "read", "torch", "library")
CODE = "import sys; from benchmarks.weights import peak; peak(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Times loading a model's weights, beside PyTorch, transformers or timm, and reading the file only; peak memory.

    `torch` is `load_state_dict(assign=True)` on a module that is there; `library` makes the module too, by
    `from_pretrained` of transformers or `create_model` of timm. Both map the file and may read a tensor only when it is
    used first.
    """

    model: Positional[str] = "resnet50"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model
    rounds: int = 10  # rounds
    output: str = str(RESULTS / "weights.csv")  # the CSV to append to


def run(config: WeightsConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. The file is in the operating system's cache."""
    model, variables, _ = drawn(config.model, config.args)
    row: dict[str, Any] = {"model": config.model, "args": config.args, "weights_mb": size_mb(variables)}
    row |= {f"{name}_{column}": "" for name in CONTESTANTS for column in ("mb_per_s", "p10", "p90")}
    with tempfile.TemporaryDirectory() as place:
        _write(config.model, model, variables, pathlib.Path(place, "folder"))
        del variables
        works = _works(config.model, config.args, pathlib.Path(place, "folder"))
        for name in CONTESTANTS:  # over the size of the file
            row[f"{name}_peak"] = _peak(config, name, place) / row["weights_mb"] if name in works else ""
        return finish(config, row, works, row["weights_mb"], "mb")


def peak(name: str, args: str, place: str, contestant: str) -> None:
    """Prints the peak memory of one contestant's call in this process, in MB."""
    work = _works(name, json.loads(args), pathlib.Path(place))[contestant]
    print(taken_mb(work))


def _peak(config: WeightsConfig, contestant: str, place: str) -> float:
    args = (config.model, json.dumps(config.args, default=str), f"{place}/folder", contestant)
    done = subprocess.run([sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ZooError(f"the peak memory of {contestant!r} was not measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def _write(name: str, model: Any, variables: Any, folder: pathlib.Path) -> None:
    """Weights in a folder of transformers where it has the model, else the file alone."""
    try:
        zoo.save_pretrained(model, variables, folder)
    except ZooError:
        folder.mkdir()
        save_weights(variables, folder / "model.safetensors")


def _works(name: str, args: dict[str, Any], folder: pathlib.Path) -> Works:
    from safetensors.numpy import load_file

    path, model = folder / "model.safetensors", zoo.create_model(name, **args)

    def ours() -> Any:
        return jax.block_until_ready(zoo.load_weights(model, path))

    return {"ours": ours, "read": lambda: load_file(path), **_torch(name, args, folder)}


def _torch(name: str, args: dict[str, Any], folder: pathlib.Path) -> Works:
    """PyTorch's ways to load the same file; none without PyTorch, or without the model in transformers and timm."""
    if torch_or_none() is None:
        return {}
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    library = _library(name, args, folder)
    if library is None:
        return {}
    module = library()
    return {"torch": lambda: module.load_state_dict(load_file(path), strict=False, assign=True), "library": library}


def _library(name: str, args: dict[str, Any], folder: pathlib.Path) -> Callable[[], Any] | None:
    from benchmarks.peers import torchvision_models

    torchvision_models()  # before transformers and timm, which import it
    try:
        if (folder / "config.json").is_file():
            import transformers

            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            kind = json.loads((folder / "config.json").read_text())["architectures"][0]
            return functools.partial(getattr(transformers, kind).from_pretrained, folder)
        import timm

        if args or not timm.is_model(name):
            return None
        return functools.partial(timm.create_model, name, checkpoint_path=os.fspath(folder / "model.safetensors"))
    except ImportError as error:
        print(f"left out: {error}")
        return None
