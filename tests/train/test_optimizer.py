"""Optax by name: schedules, clipping, decay that spares norms and biases, and what a wrong name gets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from train.config import OptimizerConfig
from train.optimizer import NAMES, decay_mask, make_optimizer, make_schedule
from zoo import ZooError
from zoo.registry import abstract_variables

PARAMS = {"conv": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}, "bn": {"scale": jnp.full(2, 2.0)}}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_updates(name):
    optimizer = make_optimizer(OptimizerConfig(name, 0.1, weight_decay=0.1), 10)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates)]
    assert np.isfinite(norms).all()


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lion", "lamb"])
def test_weight_decay_spares_norms_and_biases(name):
    optimizer = make_optimizer(OptimizerConfig(name, 0.1, schedule="constant", weight_decay=0.5), 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    assert (updates["conv"]["kernel"] < 0).all()
    assert not updates["conv"]["bias"].any()
    assert not updates["bn"]["scale"].any()


def test_every_model_decays_its_kernels_and_nothing_else():
    for name in zoo.list_models():
        params = abstract_variables(zoo.create_model(name), zoo.model_info(name).example())["params"]
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
            assert decays == (path[-1].key == "kernel")


def test_schedules():
    def rates(**changes):
        config = OptimizerConfig("sgd", 0.8, **changes)
        schedule = make_schedule(config, 100)
        return [round(float(schedule(step)), 6) for step in (0, 5, 10, 55, 100, 150)]

    assert rates(schedule="constant") == [0.8] * 6
    assert rates(schedule="constant", warmup_steps=10) == [0, 0.4, 0.8, 0.8, 0.8, 0.8]
    assert rates(schedule="linear", warmup_steps=10) == [0, 0.4, 0.8, 0.4, 0, 0]
    assert rates(schedule="cosine", warmup_steps=10) == [0, 0.4, 0.8, 0.4, 0, 0]
    assert rates(schedule="linear", decay_steps=200)[4] == 0.4


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig("sgd", 1.0, schedule="constant", clip_norm=0.5)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)


def test_arguments_go_to_optax():
    config = OptimizerConfig("sgd", 1.0, schedule="constant", args={"momentum": 0.5})
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(PARAMS)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for expected in (-1.0, -1.5, -1.75):
        updates, state = optimizer.update(ones, state, PARAMS)
        assert float(updates["bn"]["scale"][0]) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig("adamx"), "unknown optimizer 'adamx'; did you mean adam"),
        (OptimizerConfig("chain"), "unknown optimizer 'chain'"),
        (OptimizerConfig("sgd", args={"momentun": 0.9}), "sgd takes no argument 'momentun' here; it takes momentum"),
        (OptimizerConfig("sgd", args={"learning_rate": 1}), "sgd takes no argument 'learning_rate' here"),
        (OptimizerConfig(warmup_steps=10), "optimizer.warmup-steps 10 must be below the schedule's end, 10"),
    ],
)
def test_wrong_names_say_what_would_be_right(config, message):
    with pytest.raises(ZooError, match=message):
        make_optimizer(config, 10)
