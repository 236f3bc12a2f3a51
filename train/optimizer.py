"""Optax by name: clipping, the optimizer, weight decay that spares norms and biases, the schedule."""

import dataclasses
import difflib
import fnmatch
import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from train.lora import lora
from train.settings import Arguments, at_least
from zoo.arrays import named_leaves
from zoo.errors import ZooError, unknown
from zoo.partition import STACKED
from zoo.registry import fits

Role = Literal["whole", "frozen", "low-rank"]
_LAYER = re.compile(r"(?:^|/)layer(\d+)/")

# Those that take a schedule.
NAMES = (
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "muon",
    "nadam",
    "nadamw",
    "novograd",
    "optimistic_adam_v2",
    "radam",
    "rmsprop",
    "sgd",
    "sign_sgd",
    "yogi",
)

# What an optimizer's arguments are tried on.
EXAMPLE = {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32), "bias": jax.ShapeDtypeStruct((2,), np.float32)}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = "adamw"  # an Optax optimizer: sgd, adam, adamw, lion, lamb, rmsprop, ...
    learning_rate: float = 1e-3  # the peak
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"  # how it decays to zero after the warm-up
    warmup_steps: int = 0  # linear rise from zero
    decay_steps: int | None = None  # where the schedule ends; default: the steps of the run as it was started
    decay_fraction: float = 0.2  # the last share of the steps, in which wsd (warm-up, stable, decay) decays
    weight_decay: float = 0.0  # of kernels and embeddings, not of biases and scales
    clip_norm: float | None = None  # largest global norm of the gradient
    ema: float | None = None  # decay of averaged weights, which are then evaluated and exported
    # the initial factor of the loss for models of dtype float16, such as 65536: halved when gradients overflow (needs
    # nonfinite skip), doubled after 2,000 steps without an overflow
    loss_scale: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"  # on a NaN or infinite gradient: stop, or skip the update and count it
    accumulate: int = 1  # micro-batches per step; batch normalisation sees one at a time
    rates: Arguments = dataclasses.field(default_factory=dict)  # rate multipliers by pattern: fc=10 'layer[12]*'=0.1
    # patterns of parameters that do not train: conv1 'layer[12]*' (running statistics still follow the data)
    freeze: list[str] = dataclasses.field(default_factory=list)
    layer_decay: float | None = None  # factor of the rate from each of a Transformer's layers to the one below it
    lora_rank: int | None = None  # train low-rank (LoRA) updates of this rank instead of whole kernels
    lora_alpha: float = 16.0  # the updates are scaled by alpha / rank
    # patterns of the kernels with low-rank updates, and of parameters that train whole beside them
    lora_targets: list[str] = dataclasses.field(default_factory=lambda: ["*/query", "*/value"])
    lora_whole: list[str] = dataclasses.field(default_factory=lambda: ["head"])
    args: Arguments = dataclasses.field(default_factory=dict)  # more arguments of the Optax optimizer: b2=0.95

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
                raise ZooError("optimizer.loss-scale needs optimizer.nonfinite skip, which lets it adapt")
        if self.lora_rank is not None:
            at_least("optimizer.lora-rank", self.lora_rank, 1)
            if self.freeze or self.rates or self.layer_decay is not None:
                raise ZooError(
                    "optimizer.lora-rank does not combine with freeze, rates and layer-decay: everything but the "
                    "low-rank updates and optimizer.lora-whole is frozen already"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ZooError(f"optimizer.clip-norm must be above 0, not {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ZooError(f"optimizer.ema must be between 0 and 1, not {self.ema}")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup_steps`, then constant or falling to 0 at `decay_steps`.

    "wsd" stays at the peak until the last `decay_fraction` of all steps, then falls in a line (Hu et al. 2024,
    arXiv:2404.06395). A warm-up that does not fit takes a tenth of the steps.
    """
    peak, end = config.learning_rate, config.decay_steps or steps
    rise = config.warmup_steps if config.warmup_steps < end else end // 10
    length = end - rise
    if config.schedule == "wsd":
        length = min(length, max(round(config.decay_fraction * end), 1))
    constant, line = optax.constant_schedule(peak), optax.linear_schedule(peak, 0.0, length)
    cosine = optax.cosine_decay_schedule(peak, length)
    fall = {"constant": constant, "linear": line, "cosine": cosine, "wsd": line}[config.schedule]
    phases = [(optax.linear_schedule(0.0, peak, rise), rise), (constant, end - rise - length)]
    phases = [(schedule, duration) for schedule, duration in phases if duration]
    ends = list(itertools.accumulate(duration for _, duration in phases))
    return optax.join_schedules([*(schedule for schedule, _ in phases), fall], ends)


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern names a parameter (`layer1_0/conv1/kernel`) or a module above it (`layer1*`)."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")


def check_patterns(config: OptimizerConfig, params: Any) -> None:
    """ZooError for a pattern of `rates` or `freeze` that names no parameter, and where nothing is left to train."""
    paths = list(named_leaves(params))
    settings = [("rates", config.rates), ("freeze", config.freeze)]
    if config.lora_rank is not None:
        settings += [("lora-targets", config.lora_targets), ("lora-whole", config.lora_whole)]
    for setting, patterns in settings:
        for pattern in patterns:
            if not any(matches(path, pattern) for path in paths):
                raise unknown(f"pattern in optimizer.{setting}", pattern, {path.split("/")[0] for path in paths})
    if all(role(config, path) == "frozen" for path in paths):
        raise ZooError(f"optimizer.freeze {config.freeze} leaves no parameter to train")
    if config.layer_decay is not None and depth_of(params) is None:
        raise ZooError("optimizer.layer-decay is for models of layers, layer0, layer1, ...; this one has none")


def role(config: OptimizerConfig, path: str) -> Role:
    """Whether a parameter trains whole, is frozen, or has low-rank updates (kernels alone)."""

    def named(patterns: list[str]) -> bool:
        return any(matches(path, pattern) for pattern in patterns)

    if config.lora_rank is None:
        return "frozen" if named(config.freeze) else "whole"
    if path.endswith("/kernel") and named(config.lora_targets):
        return "low-rank"
    return "whole" if named(config.lora_whole) else "frozen"


def stop_frozen(config: OptimizerConfig, params: Any) -> Any:
    """The parameters, with `stop_gradient` on frozen ones, whose gradient is then not computed."""
    roles = _by_path(params, partial(role, config))
    return jax.tree.map(lambda role, leaf: jax.lax.stop_gradient(leaf) if role == "frozen" else leaf, roles, params)


def _by_path(params: Any, value: Callable[[str], Any]) -> Any:
    """A tree like `params` of the values of its leaves' paths."""
    keystr = partial(jax.tree_util.keystr, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: value(keystr(path)), params)


def scale_by_pattern(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the factors of all patterns that name their parameter."""

    def factor(path: str) -> float:
        return math.prod((rate for pattern, rate in rates.items() if matches(path, pattern)), start=1.0)

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda rate, leaf: rate * leaf, _by_path(updates, factor), updates)

    return optax.stateless(update)


def scale_by_depth(decay: float, embeddings: Sequence[str]) -> optax.GradientTransformation:
    """Updates times `decay` to the number of layers above (Clark et al. 2020): embeddings have all of them above."""

    def update(updates: Any, params: Any) -> Any:
        depth = depth_of(updates) or 0

        def scaled(path: str, leaf: jax.Array) -> jax.Array:
            if found := _LAYER.search(path):
                return decay ** (depth - 1 - int(found[1])) * leaf
            if f"/{STACKED}/" in f"/{path}":
                factors = decay ** jnp.arange(depth - 1, -1, -1, dtype=leaf.dtype)
                return factors.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf
            return decay**depth * leaf if path.split("/")[0] in embeddings else leaf

        paths = _by_path(updates, lambda path: path)
        return jax.tree.map(scaled, paths, updates)

    return optax.stateless(update)


def depth_of(params: Any) -> int | None:
    """How many layers, layer0, layer1, ... or scanned, a model has; None where it has no such."""
    leaves = named_leaves(params)
    numbers = [int(found[1]) for path in leaves if (found := _LAYER.search(path))]
    stacks = [len(leaf) for path, leaf in leaves.items() if f"/{STACKED}/" in f"/{path}"]
    return max([*(number + 1 for number in numbers), *stacks], default=None)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere but in leaves whose name ends in bias or scale."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("bias", "scale")), params)


def make_optimizer(
    config: OptimizerConfig, steps: int, *, seed: int = 0, embeddings: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The chain. Where the optimizer has no decoupled weight decay of its own, the decay is added to the gradient.

    `seed` draws the first factors of low-rank updates; `embeddings` are the modules below the first layer, for
    layer_decay.

    ZooError for an optimizer or argument that Optax does not have, with the nearest ones.
    """
    constructor = optax.contrib.muon if config.name == "muon" else getattr(optax, config.name, None)
    if config.name not in NAMES or constructor is None:
        raise unknown("optimizer", config.name, [name for name in NAMES if name == "muon" or hasattr(optax, name)])
    takes = inspect.signature(constructor).parameters
    for key in config.args:
        if key not in takes or key in ("learning_rate", "weight_decay", "mask", "weight_decay_mask"):
            near = difflib.get_close_matches(key, takes, n=3, cutoff=0.5) or list(takes)
            raise ZooError(f"{config.name} takes no argument {key!r} here; it takes {', '.join(near)}")
    args, chain = dict(config.args), []
    if config.name == "muon":
        args = {"muon_weight_dimension_numbers": muon_dimensions, "adam_weight_decay": 0.0, **args}
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    mask = next((name for name in ("mask", "weight_decay_mask") if name in takes), None)
    if mask and "weight_decay" in takes:
        args |= {"weight_decay": config.weight_decay, mask: decay_mask}
    elif config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    end = config.decay_steps or steps
    if config.warmup_steps >= end:
        shortened = f"does not fit into {end} steps; shortened to {end // 10}"
        warnings.warn(f"optimizer.warmup-steps {config.warmup_steps} {shortened}", stacklevel=2)
    schedule = make_schedule(config, steps)
    try:
        made = constructor(learning_rate=schedule, **args)
        before = jax.eval_shape(made.init, EXAMPLE)
        after = jax.eval_shape(made.update, EXAMPLE, before, EXAMPLE)[1]
        if _kinds(before) != _kinds(after):
            raise TypeError("its state would change its shapes or types")
    except Exception as error:  # whatever Optax and JAX raise for wrong arguments
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ZooError(f"{config.name} does not take {config.args!s:.160}: {line}") from None
    chain.append(made)
    if config.rates:
        chain.append(scale_by_pattern(config.rates))
    if config.layer_decay is not None:
        chain.append(scale_by_depth(config.layer_decay, embeddings))
    optimizer = optax.chain(*chain)
    if not config.freeze and config.lora_rank is None:
        return optimizer
    ways = {"whole": optimizer, "frozen": optax.set_to_zero()}
    if config.lora_rank is not None:
        ways["low-rank"] = lora(optimizer, config.lora_rank, config.lora_alpha, seed)
    return optax.partition(ways, lambda params: _by_path(params, partial(role, config)))


def _kinds(tree: Any) -> dict[str, Any]:
    """Shape and dtype of every leaf, by path."""
    return {path: (leaf.shape, leaf.dtype) for path, leaf in named_leaves(tree).items()}


def muon_dimensions(params: Any) -> Any:
    """Which parameters Muon orthogonalises: kernels of two or more axes, as matrices from all inputs to the outputs,
    those of a scanned stack layer by layer.

    The rest, and embeddings, are Adam's.
    """

    def spec(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel" or leaf.ndim < 2:
            return None
        first = int(any(key.key == STACKED for key in path))
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(spec, params)
