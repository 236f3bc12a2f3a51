"""The settings of a run: frozen dataclasses that tyro turns into flags, and JSON into a run folder."""

import ast
import dataclasses
import math
import os
import re
import typing
from typing import Annotated, Any, Literal

import tyro

from train.data.augment import AugmentConfig
from train.mesh import check_parallel, parse_mesh
from train.processes import parse_distributed
from train.tasks.classification import Classification
from train.tasks.language_model import LanguageModel
from train.tasks.masked_language_model import MaskedLanguageModel
from train.tasks.translation import Translation
from zoo.errors import ZooError, unknown
from zoo.registry import fits, type_name


def _parse_pairs(items: list[str]) -> dict[str, Any]:
    pairs = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ValueError(f"{item!r} is not of the form name=value")
        try:
            pairs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            pairs[key] = text  # a plain word, such as bfloat16
    return pairs


# name=value pairs, values as Python literals or plain words: --model.args width=2 dtype=bfloat16
Arguments = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=_parse_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{key}={item}" for key, item in value.items()],
    ),
]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = "simple_cnn"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model, e.g. width=32 dtype=bfloat16
    # a .safetensors file to start from; a folder of Hugging Face's, whose config.json then gives the model's fields; or
    # "pretrained": the weights that come with the zoo
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = "digits"  # digits (built in), or any labelled image set of TFDS
    path: str | None = None  # a folder of class folders, instead of a name
    dir: str | None = None  # where TFDS sets lie or go; default $TFDS_DATA_DIR, else ~/tensorflow_datasets
    image_size: int | None = None  # side in pixels to which images of varying size are brought; default: the model's
    train_examples: int | None = None  # only so many of train, the first ones; default: all
    validation_fraction: float = 0.1  # the end of train that validates, where a set has no validation split

    def check(self) -> None:
        """ZooError for a value out of range."""
        check_fraction(self.validation_fraction)
        if self.train_examples is not None:
            at_least("data.train-examples", self.train_examples, 1)
        if self.image_size is not None:
            at_least("data.image-size", self.image_size, 1)

    def tfds_dir(self) -> str:
        return tfds_dir(self.dir)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Text read as one long stream, or as documents."""

    name: str = "stdlib"  # the standard library's sources (built in), or any text set of TFDS
    # instead of a name, UTF-8 text: a file, or a folder of files; where labelled, text and label by a tab
    path: str | None = None
    dir: str | None = None  # where TFDS sets lie or go; default $TFDS_DATA_DIR, else ~/tensorflow_datasets
    tokenizer: str = "char"  # char, byte, bpe, word, wordpiece, unigram; or a tokenizer.json, or its folder
    vocab_size: int = 4096  # the most tokens where a vocabulary is learnt
    context: int = 64  # tokens in an example; back-propagation goes back so far
    packed: bool = False  # documents (a folder's files, a set's texts) share examples but see nothing of one another
    validation_fraction: float = 0.1  # the end of train that validates, where a set has no validation split

    def check(self) -> None:
        """ZooError for a value out of range."""
        check_fraction(self.validation_fraction)
        at_least("data.context", self.context, 1)
        at_least("data.vocab-size", self.vocab_size, 2)

    def tfds_dir(self) -> str:
        return tfds_dir(self.dir)


@dataclasses.dataclass(frozen=True)
class LabelledTextConfig(TextConfig):
    """Texts with a label each."""

    def check(self) -> None:
        """ZooError for a value out of range."""
        super().check()
        if self.packed:
            raise ZooError("data.packed is for language models; labelled texts are examples by themselves")


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Pairs of a source and a target."""

    name: str = "dates"  # dates or docstrings (built in), or any set of TFDS with two texts
    # instead of a name: a table of source and target by a tab, a folder of train.tsv, validation.tsv, test.tsv, or a
    # file of sources, whose targets are the lines of target_path
    path: str | None = None
    target_path: str | None = None
    dir: str | None = None  # where TFDS sets lie or go; default $TFDS_DATA_DIR, else ~/tensorflow_datasets
    source: str | None = None  # the features of a TFDS set, such as de and en; default: the set's own choice
    target: str | None = None
    source_tokenizer: str = "char"  # char, byte, bpe, unigram, word, wordpiece; or a tokenizer.json, or its folder
    target_tokenizer: str = "char"
    vocab_size: int = 8000  # the most tokens of bpe, unigram, word and wordpiece
    shared_vocabulary: bool = False  # one vocabulary, learnt of both sides
    lowercase: bool = False  # bring both sides to lower case
    source_length: int | None = None  # the most tokens of a source, its end among them; default: the longest one's
    target_length: int | None = None
    validation_fraction: float = 0.1  # the end of train that validates, where a set has no validation split
    seed: int = 0  # of dates

    def check(self) -> None:
        """ZooError for a value out of range."""
        check_fraction(self.validation_fraction)
        at_least("data.vocab-size", self.vocab_size, 2)
        at_least("data.seed", self.seed, 0)
        for name in ("source_length", "target_length"):
            if getattr(self, name) is not None:
                at_least(f"data.{name.replace('_', '-')}", getattr(self, name), 2)
        if self.target_path is not None and self.path is None:
            raise ZooError("data.target-path goes with a data.path of the sources, line for line")

    def tfds_dir(self) -> str:
        return tfds_dir(self.dir)


def tfds_dir(directory: str | None) -> str:
    """Where TFDS sets lie."""
    return os.path.expanduser(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


Data = DataConfig | TextConfig | LabelledTextConfig | PairsConfig
Task = Classification | LanguageModel | MaskedLanguageModel | Translation


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = "adamw"  # an Optax optimizer: sgd, adam, adamw, lion, lamb, rmsprop, ...
    learning_rate: float = 1e-3  # the peak
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"  # how it falls, to zero, after the warm-up
    warmup_steps: int = 0  # linear rise from zero
    decay_steps: int | None = None  # where the schedule ends; default: steps, as the run was begun
    decay_fraction: float = 0.2  # the last share of the steps, in which wsd (warm-up, stable, decay) falls
    weight_decay: float = 0.0  # of kernels and embeddings; biases and norms' scales are spared
    clip_norm: float | None = None  # the gradient's largest global norm
    ema: float | None = None  # decay of averaged weights, which are then the ones evaluated and exported
    # what the loss is multiplied by at first, for models of dtype float16, such as 65536: halved where gradients
    # overflow (with nonfinite skip), doubled after 2,000 steps where none did
    loss_scale: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"  # where loss or gradient is: stop, or leave the update out and count it
    accumulate: int = 1  # micro-batches a step; with BatchNorm each normalises by itself
    rates: Arguments = dataclasses.field(default_factory=dict)  # factors of the rate by pattern: fc=10 'layer[12]*'=0.1
    # patterns of parameters that stay: conv1 'layer[12]*' (their norms' running statistics still follow the data)
    freeze: list[str] = dataclasses.field(default_factory=list)
    layer_decay: float | None = None  # factor of the rate from each of a Transformer's layers to the one below it
    lora_rank: int | None = None  # low-rank adaptation: what does not train whole stays, but for products so thin
    lora_alpha: float = 16.0  # the product counts alpha / rank
    # patterns of the kernels that it adapts, and of what trains whole beside them
    lora_targets: list[str] = dataclasses.field(default_factory=lambda: ["*/query", "*/value"])
    lora_whole: list[str] = dataclasses.field(default_factory=lambda: ["head"])
    args: Arguments = dataclasses.field(default_factory=dict)  # more of Optax's arguments, e.g. b2=0.95 nesterov=True

    def check(self) -> None:
        """ZooError for a value out of range."""
        at_least("optimizer.warmup-steps", self.warmup_steps, 0)
        at_least("optimizer.weight-decay", self.weight_decay, 0)
        at_least("optimizer.accumulate", self.accumulate, 1)
        at_least("optimizer.learning-rate", self.learning_rate, 0)
        if not 0 < self.decay_fraction <= 1:
            raise ZooError(f"optimizer.decay-fraction must be in (0, 1], not {self.decay_fraction}")
        for pattern, factor in self.rates.items():
            if not (fits(factor, float) and math.isfinite(factor) and factor >= 0):
                raise ZooError(f"optimizer.rates {pattern} must be a number of at least 0, not {factor!r}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ZooError(f"optimizer.layer-decay must be in (0, 1], not {self.layer_decay}")
        if self.loss_scale is not None:
            if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
                raise ZooError(f"optimizer.loss-scale must be above 0, not {self.loss_scale}")
            if self.nonfinite != "skip":
                raise ZooError("optimizer.loss-scale goes with optimizer.nonfinite skip, by which it finds its size")
        if self.lora_rank is not None:
            at_least("optimizer.lora-rank", self.lora_rank, 1)
            if self.freeze or self.rates or self.layer_decay is not None:
                raise ZooError(
                    "optimizer.lora-rank goes without freeze, rates and layer-decay: all but thin products and "
                    "optimizer.lora-whole stays as it is"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ZooError(f"optimizer.clip-norm must be above 0, not {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ZooError(f"optimizer.ema must be between 0 and 1, not {self.ema}")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every: int = 50  # steps between lines
    tensorboard: bool = True  # write event files
    stall: float = 300.0  # seconds without a step, or a batch of an evaluation, after which it is said where it waits


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. The same fields, in the same form, lie in the run folder's config.json."""

    workdir: str  # the run folder
    steps: int  # updates
    batch_size: int  # examples an update, over all devices
    seed: int = 0  # of initial weights, order of data, augmentation and dropout
    parallel: Literal["auto", "jit", "mesh", "pmap"] = "auto"  # auto: jit on one device, mesh on several
    # the axes of parallel mesh and their sizes, data=2,fsdp=4: data splits the batch, fsdp also the state, and of a
    # Transformer tensor splits heads and features, context the sequence; data has what the others leave
    mesh: str | None = None
    # several processes as one: auto (SLURM, Kubernetes, Open MPI, TPU pods), or coordinator=HOST:PORT,num=N,id=I; each
    # run says it anew
    distributed: str | None = None
    resume: bool = False  # go on from the newest checkpoint in workdir; start where there is none
    eval_every: int = 1000  # steps between evaluations on validation data, each followed by a checkpoint
    keep: int = 2  # newest checkpoints kept, besides the best
    profile: str | None = None  # START:STOP, steps to trace for TensorBoard's profiler
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: Data = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    task: Task = dataclasses.field(default_factory=Classification)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def check(self) -> None:
        """ZooError for a value out of range; what needs the data or the devices is checked where they are known."""
        at_least("steps", self.steps, 1)
        at_least("batch-size", self.batch_size, 1)
        if not 0 <= self.seed < 2**63:  # what jax.random.key takes
            raise ZooError(f"seed must be at least 0 and below 2**63, not {self.seed}")
        at_least("eval-every", self.eval_every, 1)
        at_least("keep", self.keep, 1)
        at_least("log.every", self.log.every, 1)
        at_least("log.stall", self.log.stall, 1)
        if self.distributed is not None:
            parse_distributed(self.distributed)
        if self.mesh is not None:
            parse_mesh(self.mesh)
            check_parallel(self.mesh, self.parallel)
        if self.parallel == "pmap" and self.augment.mixes:
            raise ZooError("parallel pmap: mixup and cutmix pair examples across devices; use mesh")
        self.optimizer.check()
        if self.batch_size % self.optimizer.accumulate:
            raise ZooError(
                f"batch-size {self.batch_size} is not divisible by optimizer.accumulate {self.optimizer.accumulate}"
            )
        images, labelled = isinstance(self.data, DataConfig), isinstance(self.task, Classification)
        pairs, translates = isinstance(self.data, PairsConfig), isinstance(self.task, Translation)
        if labelled != (images or isinstance(self.data, LabelledTextConfig)) or pairs != translates:
            raise ZooError(f"task {type(self.task).__name__} does not go with data {type(self.data).__name__}")
        if not images and (self.augment != AugmentConfig() or getattr(self.task, "test_flip", False)):
            raise ZooError("augment and task.test-flip are for images; the data are texts")
        if isinstance(self.task, LanguageModel) and self.parallel == "pmap":
            raise ZooError("parallel pmap: a language model's state is carried over the batch; use mesh")
        self.augment.check()
        self.data.check()
        self.task.check()
        self.profile_steps()

    def profile_steps(self) -> tuple[int, int] | None:
        """The first step to trace and the one to stop before."""
        if self.profile is None:
            return None
        found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile)
        if not (found and int(found[1]) < int(found[2]) <= self.steps):
            raise ZooError(f"profile must be START:STOP, two of the {self.steps} steps, not {self.profile!r:.80}")
        return int(found[1]), int(found[2])


def at_least(name: str, value: float, least: float) -> None:
    """ZooError unless `value` is a number of at least `least`."""
    if not value >= least:
        raise ZooError(f"{name} must be at least {least}, not {value}")


def check_fraction(fraction: float) -> None:
    """ZooError for a share of the data that is not one."""
    if not 0 <= fraction < 1:
        raise ZooError(f"data.validation-fraction must be in [0, 1), not {fraction}")


def to_json(config: Any) -> dict[str, Any]:
    """The settings as plain JSON data; where a field may be of several kinds, with its `kind`."""
    data = dataclasses.asdict(config)
    for name, hint in typing.get_type_hints(type(config)).items():
        if len(_kinds(hint)) > 1:
            data[name]["kind"] = type(getattr(config, name)).__name__
    return data


def from_json(data: Any, kind: Any = Config) -> Any:
    """The inverse of `to_json`; ZooError for a field that does not exist or a value that is not an object."""
    if not isinstance(data, dict):
        raise ZooError(f"settings must be an object, not {data!r:.80}")
    hints = typing.get_type_hints(kind)
    fields = {}
    for name, value in data.items():
        if name not in hints:
            raise unknown(f"setting of {kind.__name__}", name, hints)
        if kinds := _kinds(hints[name]):
            value = dict(value) if isinstance(value, dict) else value
            chosen = value.pop("kind", next(iter(kinds))) if isinstance(value, dict) else next(iter(kinds))
            if str(chosen) not in kinds:
                raise unknown(f"kind of {name}", str(chosen), kinds)
            value = from_json(value, kinds[chosen])
        elif not fits(tuple(value) if typing.get_origin(hints[name]) is tuple else value, hints[name]):
            raise ZooError(f"{name} of {kind.__name__} must be {type_name(hints[name])}, not {value!r:.80}")
        elif type(value) is int and fits(0.5, hints[name]):
            value = float(value)  # JAX takes no whole number beyond 32 bits
        fields[name] = value
    try:
        return kind(**fields)
    except TypeError as error:
        raise ZooError(f"settings of {kind.__name__} are incomplete: {error}") from None


def _kinds(hint: Any) -> dict[str, Any]:
    """The dataclasses that a field may be, by name."""
    kinds = (kind for kind in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(kind))
    return {kind.__name__: kind for kind in kinds}  # type: ignore[union-attr]


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two settings differ, by dotted name: (old, new)."""
    if type(old) is not type(new):
        return {f"{prefix}kind": (type(old).__name__, type(new).__name__)}
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(old):
        was, now, name = getattr(old, field.name), getattr(new, field.name), prefix + field.name
        if dataclasses.is_dataclass(was):
            found |= differences(was, now, f"{name}.")
        elif was != now:
            found[name] = was, now
    return found
