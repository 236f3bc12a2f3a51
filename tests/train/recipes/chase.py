"""A recipe with its own model, source and task: learn the value of positions on a ring, by acting on it.

    python -m train tests/train/recipes/chase.py

The task uses all that the protocol has: one environment per row (`Extra.rows`), a target network and a counter
(`Extra.params`), a recurrent trace (`Extra.carry`), a table of rewards (`Extra.constants`), a batch made in `prepare`,
a forward pass with other variables, sums that are arrays, whole outputs in `evaluate`, a page and a closing example.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import train
import zoo
from train.report.page import CURVES, draw_curves, write_page
from zoo.inputs.image import ImageInputs

PLACES = 8


@zoo.register("ring_value", family="cnn", input_shape=(1, 1, PLACES))
class RingValue(nn.Module):
    """One-hot places [B, 1, 1, PLACES] to values [B, num_classes]."""

    num_classes: int = 2
    hidden_size: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    head = "head"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.hidden_size, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, name="head")(hidden)


@dataclasses.dataclass(frozen=True)
class RingData(train.Source):
    """Seeds of episodes."""

    episodes: int = 64

    def load(self, model_shape, inputs=None):
        ones = (1.0,) * PLACES
        inputs = ImageInputs((1, 1, PLACES), (0.0,) * PLACES, ones, ("left", "right"))
        seeds = np.arange(self.episodes, dtype=np.int32)
        splits = [train.ArraySplit({"seed": part}) for part in np.split(seeds, [self.episodes // 2])]
        return train.Dataset("ring", splits[0], splits[1], None, inputs)


@dataclasses.dataclass(frozen=True)
class Chase(train.Task):
    """Temporal differences towards a target network that follows the parameters."""

    discount: float = 0.5
    follow: float = 0.1  # the target network's step towards the parameters

    metric: ClassVar[str] = "mean_value"
    needs: ClassVar[tuple[str, ...]] = ("seed",)

    def constants(self, dataset):
        return {"reward": np.linspace(0, 1, PLACES, dtype=np.float32)}

    def carry(self, model, batch_size):
        return jnp.zeros((batch_size, 2))

    def begin(self, model, variables, inputs, batch_size, key):
        places = jax.random.randint(key, (batch_size,), 0, PLACES)
        params = {"target": jax.tree.map(jnp.copy, variables["params"]), "steps": jnp.zeros((), jnp.int32)}
        return train.Extra(rows={"place": places}, params=params)

    def prepare(self, forward, state, batch, key):
        place = state.extra.rows["place"]
        values = forward(one_hot(place))
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["row"])
        random = jax.vmap(lambda key: jax.random.randint(key, (), 0, 2))(keys)
        explores = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5))(keys)
        action = jnp.where(explores, random, jnp.argmax(values, axis=-1))
        after = (place + 2 * action - 1) % PLACES
        batch = {**batch, "place": place, "action": action, "after": after}
        return batch, state.extra.replace(rows={"place": after})

    def loss(self, forward, batch, extra, key, train: bool):
        if not train:
            values = forward(one_hot(batch["seed"] % PLACES))
            total = jnp.sum(jnp.max(values, axis=-1) * batch["weight"])
            visits = jnp.sum(jax.nn.one_hot(batch["seed"] % PLACES, PLACES) * batch["weight"][:, None], axis=0)
            return loss_of(total, jnp.sum(batch["weight"]), {"loss": total, "visits": visits}, extra.carry)
        chosen = jnp.take_along_axis(forward(one_hot(batch["place"]), train=True), batch["action"][:, None], 1)[:, 0]
        ahead = forward(one_hot(batch["after"]), variables={"params": extra.params["target"]})
        goal = extra.constants["reward"][batch["after"]] + self.discount * jnp.max(ahead, axis=-1)
        total = jnp.sum((chosen - jax.lax.stop_gradient(goal)) ** 2 * batch["weight"])
        visits = jnp.sum(jax.nn.one_hot(batch["place"], PLACES), axis=0)
        carry = 0.9 * extra.carry + jax.lax.stop_gradient(jnp.stack([chosen, goal], axis=1))
        return loss_of(total, jnp.sum(batch["weight"]), {"loss": total, "visits": visits}, carry)

    def after(self, old, new):
        target = optax.incremental_update(new.params, new.extra.params["target"], self.follow)
        return new.extra.replace(params={"target": target, "steps": new.extra.params["steps"] + 1})

    def metrics(self, sums):
        return {"loss": sums["loss"] / sums["count"], "visited": int((np.asarray(sums["visits"]) > 0).sum())}

    def evaluate(self, evaluation, split):
        found = evaluation.collect(outputs, split)
        assert len(found["value"]) == split.size
        return {**self.metrics(evaluation.sums(split)), "mean_value": float(found["value"].mean())}

    def score(self, metrics):
        return metrics["mean_value"]

    def report(self, run, dataset, options):
        path = draw_curves(options.folder(), self.metric, options.make_output() / "curves.png")
        return write_page(options, dataset.name, {CURVES: path}, {CURVES: "Learning curves"})

    def example(self, run, dataset, workdir: pathlib.Path) -> str:
        values = run.model.apply(run.variables, one_hot(jnp.arange(PLACES)))
        return "best actions: " + " ".join(run.inputs.labels[i] for i in np.argmax(values, axis=-1))


def one_hot(place):
    return jax.nn.one_hot(place, PLACES)[:, None, None, :]


def outputs(forward, batch):
    return {"value": jnp.max(forward(one_hot(batch["seed"] % PLACES)), axis=-1)}


def loss_of(*args):
    return train.Loss(*args)


def config() -> train.Config:
    return train.Config(
        workdir="runs/chase",
        steps=40,
        batch_size=16,
        eval_every=10,
        model=train.ModelConfig("ring_value"),
        data=RingData(),
        task=Chase(),
        optimizer=train.OptimizerConfig("adam", 3e-2, ema=0.9),
        log=train.LogConfig(every=5, tensorboard=False),
    )
