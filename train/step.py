"""The one pure training step.

Written once, for one device's view of the batch. Under jit and on a mesh the batch is the global one and sums are
global by themselves; under pmap `axis_name` names the mapped axis over which they are added up.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from train.forward import Forward
from train.optimizer import OptimizerConfig, stop_frozen
from train.tasks.task import Batch, Extra, Task
from zoo import partition
from zoo.inputs import Inputs
from zoo.ops.convolution import fast_kernel_gradients

Sums = dict[str, jax.Array]

GROWS_AFTER = 2000  # finite steps
LOSS = 2**31 - 1  # folded into the key of dropout for the loss's own


class LossScale(NamedTuple):
    """What the loss is multiplied by, so that float16 holds small gradients (Micikevicius et al. 2018, section 3.2)."""

    factor: jax.Array  # float32, a power of two where it began as one
    since: jax.Array  # finite steps at it, int32

    def after(self, finite: jax.Array) -> "LossScale":
        """Half of it, down to 1, after an overflow; twice as much after `GROWS_AFTER` finite steps."""
        grows = self.since + 1 >= GROWS_AFTER
        smaller = jnp.maximum(self.factor / 2, jnp.minimum(self.factor, 1.0))
        factor = jnp.where(finite, self.factor * jnp.where(grows, 2.0, 1.0), smaller)
        return LossScale(factor, jnp.where(finite & ~grows, self.since + 1, 0))


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. `collections` are the model's other variables, such as batch statistics."""

    step: jax.Array  # updates made, int32
    params: Any
    collections: Any
    opt_state: Any
    ema: Any  # averaged params and collections, or None
    extra: Extra = Extra()
    scale: Any = None  # LossScale, or None

    def variables(self) -> dict[str, Any]:
        return {"params": self.params, **self.collections}

    def eval_variables(self) -> dict[str, Any]:
        """The weights to evaluate and to export: the averaged ones where there are any."""
        return self.variables() if self.ema is None else self.ema

    def items(self) -> dict[str, Any]:
        """What a checkpoint saves, by item; `Extra.constants` are made again."""
        optimizer = {"step": self.step, "opt_state": self.opt_state, "carry": self.extra.carry, "scale": self.scale}
        task = {"rows": self.extra.rows, "params": self.extra.params}
        items = {"model": self.variables(), "optimizer": present(optimizer), "ema": self.ema, "task": present(task)}
        return {name: item for name, item in items.items() if jax.tree.leaves(item)}

    def with_items(self, items: Mapping[str, Any]) -> "TrainState":
        """The state with what a checkpoint saved; the inverse of `items`."""
        optimizer = dict(items["optimizer"])
        extra = dataclasses.replace(self.extra, carry=optimizer.pop("carry", None), **items.get("task", {}))
        collections = {name: value for name, value in items["model"].items() if name != "params"}
        parts = {"params": items["model"]["params"], "collections": collections, "ema": items.get("ema")}
        return dataclasses.replace(self, **parts, **optimizer, extra=extra)


def present(item: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not None."""
    return {name: value for name, value in item.items() if value is not None}


def init_state(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    ema: bool,
    extra: Extra | None = None,
    loss_scale: float | None = None,
) -> TrainState:
    """The state before the first step, of initial or loaded variables."""
    collections = {name: value for name, value in variables.items() if name != "params"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        collections=collections,
        opt_state=optimizer.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, dict(variables)) if ema else None,
        extra=Extra() if extra is None else extra,
        scale=None if loss_scale is None else LossScale(jnp.float32(loss_scale), jnp.zeros((), jnp.int32)),
    )


def step_keys(seed: int, step: jax.Array) -> jax.Array:
    """A step's keys: for augmentation and for dropout."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))


def averaged(ema: float, state: TrainState, variables: Any) -> Any:
    """The averaged variables after a step; the first steps weigh less, so that it is no average of initial weights."""
    decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.ema, variables)


def make_train_step(
    task: Task,
    model: nn.Module,
    inputs: Inputs,
    optimizer: optax.GradientTransformation,
    settings: OptimizerConfig,
    seed: int,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """The pure function (state, batch) -> (state, metrics).

    Metrics are the task's sums over the batch, with `count`, and `grad_norm`, the norm of the averaged gradient.
    Gradients are averaged over what the task counts, over all micro-batches and devices.
    """

    rules = partition.rules_of(model)

    def sum_gradients(
        state: TrainState, collections: Any, carry: Any, batch: Batch, micro: Any
    ) -> tuple[Any, Any, Any, Sums]:
        key = jax.random.fold_in(step_keys(seed, state.step)[1], micro)
        if axis_name is not None:  # each shard draws its own masks
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        extra = dataclasses.replace(state.extra, carry=carry)

        def summed_loss(params: Any) -> tuple[jax.Array, tuple[Any, Any, Sums]]:
            variables = {"params": stop_frozen(settings, params), **collections}
            forward = Forward(model, inputs, variables, state.step, key)
            with fast_kernel_gradients():
                loss = task.loss(forward, batch, extra, jax.random.fold_in(key, LOSS), train=True)
            total = loss.total if state.scale is None else loss.total * state.scale.factor
            return total, (forward.collections, loss.carry, {**loss.sums, "count": loss.count})

        gradients, (changed, after, sums) = jax.grad(partition.over_shards(summed_loss, rules), has_aux=True)(
            state.params
        )
        return gradients, changed, after, sums

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        before = Forward(model, inputs, state.variables(), state.step)
        batch, extra = task.prepare(before, state, batch, step_keys(seed, state.step)[0])
        prepared = dataclasses.replace(state, extra=extra)
        gradients, collections, carry, sums = accumulated(sum_gradients, settings.accumulate, prepared, batch)
        if axis_name is not None:
            gradients, sums = jax.lax.psum((gradients, sums), axis_name)
        count = sums["count"] if state.scale is None else sums["count"] * state.scale.factor
        gradients = jax.tree.map(lambda g: divided(g, count), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        changed = {"params": params, "collections": collections, "opt_state": opt_state}
        new = dataclasses.replace(state, step=state.step + 1, extra=dataclasses.replace(extra, carry=carry), **changed)
        if settings.ema is not None:
            new = dataclasses.replace(new, ema=averaged(settings.ema, state, new.variables()))
        new = dataclasses.replace(new, extra=task.after(state, new))
        metrics = {**sums, "grad_norm": optax.tree.norm(gradients)}
        if settings.nonfinite == "stop":
            return new, metrics
        return skipped_unless_finite(state, new, {**metrics, "update_norm": optax.tree.norm(updates)})

    return train_step


@jax.jit
def finite(tree: Any) -> jax.Array:
    """Whether every number of a tree of arrays is."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def divided(gradient: jax.Array, count: jax.Array) -> jax.Array:
    """The quotient in the gradient's dtype, taken in float32: float16 ends at 65,504, bfloat16 rounds counts."""
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    return (gradient.astype(wide) / count.astype(wide)).astype(gradient.dtype)


def skipped_unless_finite(state: TrainState, new: TrainState, metrics: Sums) -> tuple[TrainState, Sums]:
    """The new state where all metrics are finite, else the old one with its step counted, and `skipped` 1.

    A skipped step's other metrics are 0, so that sums over steps are those of the updates that were made.
    """
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(value)) for value in metrics.values()]))
    scale = None if state.scale is None else state.scale.after(finite)
    new = dataclasses.replace(new, scale=scale)
    before = dataclasses.replace(state, step=new.step, scale=scale)
    chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, before)
    counted = {name: jnp.where(finite, value, 0) for name, value in metrics.items()}
    return chosen, {**counted, "skipped": 1.0 - finite}


def accumulated(
    sum_gradients: Callable[..., Any], k: int, state: TrainState, batch: Batch
) -> tuple[Any, Any, Any, Sums]:
    """The sums of gradients and metrics over `k` micro-batches, one after the other; the collections and the carry."""
    if k == 1:
        return sum_gradients(state, state.collections, state.extra.carry, batch, 0)
    # Micro-batch m takes rows m, m + k, ...: each device keeps its own rows.
    rows = (dict(batch), state.extra.carry)
    pieces = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, k, *x.shape[1:]), 1, 0), rows)

    def body(totals: tuple[Any, Any, Sums], item: tuple[jax.Array, tuple[Batch, Any]]) -> tuple[Any, Any]:
        gradients, collections, sums = totals
        micro, (batch, carry) = item
        more, collections, after, more_sums = sum_gradients(state, collections, carry, batch, micro)
        totals = jax.tree.map(jnp.add, gradients, more), collections, jax.tree.map(jnp.add, sums, more_sums)
        return totals, after

    batch, carry = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(sum_gradients, state, state.collections, carry, batch, 0)
    gradients, _, _, sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    totals = (gradients, state.collections, sums)
    (gradients, collections, sums), after = jax.lax.scan(body, totals, (jnp.arange(k), pieces))
    after = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), after)
    return gradients, collections, after, sums
