"""The settings of one run."""

import dataclasses
import math
import re
from types import ModuleType
from typing import Any, Literal

from train import recipes
from train.data.images import ImageData
from train.data.source import Source
from train.mesh import check_parallel, parse_mesh
from train.optimizer import OptimizerConfig
from train.processes import parse_distributed
from train.settings import Arguments, at_least, from_json
from train.tasks.classification import Classification
from train.tasks.task import Task
from train.tracking import check_wandb
from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = "simple_cnn"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model, e.g. width=32 dtype=bfloat16
    # weights to start from: a folder of a run, an export, Hugging Face's or timm's, which gives the model's fields and
    # inputs too; a .gguf file, likewise; a .safetensors file; or "pretrained": the weights that come with the zoo; of a
    # detector also those of a classifier, for its backbone
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every: int = 50  # steps between lines
    tensorboard: bool = True  # write event files
    wandb: str | None = None  # the project of Weights & Biases that metrics and pictures go to
    stall: float = 300.0  # seconds without a step, or a batch of an evaluation, before a stall is reported


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. The same fields, in the same form, are in the run folder's config.json."""

    workdir: str  # the run folder
    steps: int  # updates
    batch_size: int  # examples per update, over all devices
    epochs: float | None = None  # passes over the training data, instead of steps
    hours: float | None = None  # wall-clock time after which training ends as if complete; --resume continues it
    seed: int = 0  # of initial weights, order of data, augmentation and dropout
    parallel: Literal["auto", "jit", "mesh", "pmap"] = "auto"  # auto: jit on one device, mesh on several
    # the axes of parallel mesh and their sizes, data=2,fsdp=4: data splits the batch, fsdp also the state; tensor
    # splits a Transformer's heads and features, context the sequence; data takes the devices that the others leave
    mesh: str | None = None
    # several processes as one: auto (SLURM, Kubernetes, Open MPI, TPU pods), or coordinator=HOST:PORT,num=N,id=I; not
    # stored, so give it to each run
    distributed: str | None = None
    resume: bool = False  # continue from the newest checkpoint in workdir; start where there is none
    eval_every: int = 1000  # steps between evaluations on validation data, each followed by a checkpoint
    keep: int = 2  # newest checkpoints to keep, besides the best
    best: str | None = None  # the metric that the best checkpoint maximises (-loss: minimises); default: the task's
    patience: int | None = None  # evaluations in a row without a better one after which training stops
    profile: str | None = None  # START:STOP, steps to trace for TensorBoard's profiler
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: Source = dataclasses.field(default_factory=ImageData)
    task: Task = dataclasses.field(default_factory=Classification)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def check(self) -> None:
        """ZooError for a value out of range; what needs the data or the devices is checked where they are known."""
        at_least("steps", self.steps, 1)
        at_least("batch-size", self.batch_size, 1)
        for name in ("epochs", "hours"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ZooError(f"{name} must be a number above 0, not {value}")
        if not 0 <= self.seed < 2**63:  # what jax.random.key takes
            raise ZooError(f"seed must be at least 0 and below 2**63, not {self.seed}")
        at_least("eval-every", self.eval_every, 1)
        at_least("keep", self.keep, 1)
        if self.patience is not None:
            at_least("patience", self.patience, 1)
        at_least("log.every", self.log.every, 1)
        at_least("log.stall", self.log.stall, 1)
        if self.log.wandb is not None:
            check_wandb()
        if self.distributed is not None:
            parse_distributed(self.distributed)
        if self.mesh is not None:
            parse_mesh(self.mesh)
            check_parallel(self.mesh, self.parallel)
        self.optimizer.check()
        if self.batch_size % self.optimizer.accumulate:
            raise ZooError(
                f"batch-size {self.batch_size} is not divisible by optimizer.accumulate {self.optimizer.accumulate}"
            )
        self.data.check()
        self.task.check()
        if self.parallel == "pmap" and self.task.mixes_examples:
            raise ZooError("parallel pmap: the task mixes examples across devices (mixup, cutmix); use mesh")
        self.profile_steps()

    def profile_steps(self) -> tuple[int, int] | None:
        """The first step to trace and the one to stop before."""
        if self.profile is None:
            return None
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile)
        steps = self.steps if self.epochs is None else math.inf
        if not (found and int(found[1]) < int(found[2]) <= steps):
            raise ZooError(f"profile must be START:STOP, two of the {self.steps} steps, not {self.profile!r:.80}")
        return int(found[1]), int(found[2])


def recipe_config(name: str, commands: tuple[str, ...] = ()) -> tuple[ModuleType, Config]:
    """The module of a recipe and its settings; `commands` are names that may have been meant instead."""
    module = recipes.load_recipe(name, commands)
    if not callable(getattr(module, "config", None)):
        raise ZooError(f"the recipe {name} has no function config() that returns a train.Config")
    default = module.config()
    if not isinstance(default, Config):
        raise ZooError(f"config() of the recipe {name} must return a train.Config, not {type(default).__name__}")
    return module, default


def read_settings(data: Any) -> Config:
    """The settings of a run folder's config.json, also of one that an earlier version wrote."""
    return from_json(_upgraded(data), Config)


def _upgraded(data: Any) -> Any:
    """Settings of earlier versions in today's form: a recurrent model's state was not reset, and CRLF in files was
    turned into LF; in 0.1.0 augmentation was no part of a task, and every text had `packed`."""
    if not isinstance(data, dict):
        return data
    data, task, source = dict(data), data.get("task"), data.get("data")
    if isinstance(task, dict) and task.get("kind") == "LanguageModel":
        data["task"] = {"reset_state": 0.0, **task}
    if isinstance(source, dict) and source.get("kind") in ("TextConfig", "TextData") and source.get("path"):
        data["data"] = {"newlines": "unix", **source}
    if "augment" not in data:
        return data
    augment, task, source = data.pop("augment"), data.get("task"), data.get("data")
    if isinstance(task, dict) and task.get("kind") == "Classification":
        data["task"] = {**task, "augment": augment}
    if isinstance(source, dict) and source.get("kind") == "LabelledTextConfig":
        data["data"] = {name: value for name, value in source.items() if name != "packed"}
    return data
