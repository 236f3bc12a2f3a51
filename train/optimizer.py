"""Optax by name: clipping, the optimizer, weight decay that spares norms and biases, the schedule."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from train.config import OptimizerConfig
from zoo.errors import ZooError, unknown

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


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup_steps`, then constant or falling to 0 at `decay_steps`."""
    end = config.decay_steps or steps
    if config.warmup_steps >= end:
        raise ZooError(f"optimizer.warmup-steps {config.warmup_steps} must be below the schedule's end, {end}")
    length = end - config.warmup_steps
    fall: Callable[[Any], Any] = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, length),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, length),
    }[config.schedule]
    if not config.warmup_steps:
        return fall
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, fall], [config.warmup_steps])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere but in leaves whose name ends in bias or scale."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("bias", "scale")), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The chain. Where the optimizer has no decoupled weight decay of its own, the decay is added to the gradient.

    ZooError for an optimizer or argument that Optax does not have, with the nearest ones.
    """
    if config.name not in NAMES or not hasattr(optax, config.name):
        raise unknown("optimizer", config.name, [name for name in NAMES if hasattr(optax, name)])
    constructor = getattr(optax, config.name)
    takes = inspect.signature(constructor).parameters
    for key in config.args:
        if key not in takes or key in ("learning_rate", "weight_decay", "mask", "weight_decay_mask"):
            near = difflib.get_close_matches(key, takes, n=3, cutoff=0.5) or list(takes)
            raise ZooError(f"{config.name} takes no argument {key!r} here; it takes {', '.join(near)}")
    args, chain = dict(config.args), []
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    mask = next((name for name in ("mask", "weight_decay_mask") if name in takes), None)
    if mask and "weight_decay" in takes:
        args |= {"weight_decay": config.weight_decay, mask: decay_mask}
    elif config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    schedule = make_schedule(config, steps)
    try:
        chain.append(constructor(learning_rate=schedule, **args))
    except (TypeError, ValueError) as error:
        raise ZooError(f"{config.name} does not take {config.args}: {error}") from None
    return optax.chain(*chain)
