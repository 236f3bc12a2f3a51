"""Optax by name: schedules, clipping, decay that spares norms and biases, frozen parameters, wrong names."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from train.optimizer import (
    NAMES,
    OptimizerConfig,
    check_patterns,
    decay_mask,
    make_optimizer,
    make_schedule,
    stop_frozen,
)
from zoo import ZooError
from zoo.registry import abstract_variables

PARAMS = {"conv": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}, "bn": {"scale": jnp.full(2, 2.0)}}


def assert_descends(optimizer):
    """Every parameter falls, and stays finite, in three steps along gradients of ones."""
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert np.isfinite(leaf).all(), path
        assert (leaf < 2.0).all(), path


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_updates_every_parameter(name):
    """Biases and scales have no weight decay, so that the optimizer itself must move them."""
    assert_descends(make_optimizer(OptimizerConfig(name, 0.1, weight_decay=0.1), 10))


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"freeze": ["bn"]}, {"rates": {"conv/bias": -1.0}}])
def test_that_check_fails_where_a_parameter_is_not_updated_or_rises(wrong):
    with pytest.raises(AssertionError):
        assert_descends(make_optimizer(OptimizerConfig(**wrong), 10))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lion", "lamb"])
def test_weight_decay_spares_norms_and_biases(name):
    optimizer = make_optimizer(OptimizerConfig(name, 0.1, schedule="constant", weight_decay=0.5), 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    assert (updates["conv"]["kernel"] < 0).all()
    assert not updates["conv"]["bias"].any()
    assert not updates["bn"]["scale"].any()


def test_every_architecture_decays_its_kernels_and_embeddings_and_nothing_else():
    for name in {zoo.model_info(name).module_class: name for name in reversed(zoo.list_models())}.values():
        params = abstract_variables(zoo.create_model(name), *zoo.model_info(name).example())["params"]
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
            tables = ("embedding", "types", "class_token", "registers", "combine", "vector")
            assert decays == (path[-1].key.endswith(("kernel", "positions")) or path[-1].key in tables)


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


def test_a_warm_up_longer_than_the_schedule_is_shortened_to_a_tenth():
    def rates(steps, **changes):
        config = OptimizerConfig("sgd", 0.8, **changes)
        make_optimizer(config, steps)  # which warns
        schedule = make_schedule(config, steps)
        return [float(schedule(step)) for step in range(steps + 1)]

    with pytest.warns(UserWarning, match=r"^optimizer.warmup-steps 500 does not fit into 100 steps; shortened to 10$"):
        shortened = rates(100, warmup_steps=500)
    assert shortened == rates(100, warmup_steps=10)
    assert (shortened[0], max(shortened), shortened[100]) == (0, pytest.approx(0.8), 0)
    with pytest.warns(UserWarning, match="warmup-steps 40 does not fit into 40 steps; shortened to 4"):
        assert rates(100, warmup_steps=40, decay_steps=40) == rates(100, warmup_steps=4, decay_steps=40)
    with pytest.warns(UserWarning, match="shortened to 0"):
        assert rates(5, warmup_steps=5) == rates(5)
    with warnings.catch_warnings(action="error"):
        rates(100, warmup_steps=99)


def test_wsd_stays_at_the_peak_and_falls_in_the_last_share():
    def rates(*steps, **changes):
        schedule = make_schedule(OptimizerConfig("sgd", 0.8, "wsd", **changes), 100)
        return [round(float(schedule(step)), 6) for step in steps]

    assert rates(0, 5, 10, 55, 80, 90, 100, 150, warmup_steps=10) == [0, 0.4, 0.8, 0.8, 0.8, 0.4, 0, 0]
    assert rates(0, 50, 75, 100, decay_fraction=0.5) == [0.8, 0.8, 0.4, 0]
    assert rates(80, 160, 180, 200, decay_steps=200) == [0.8, 0.8, 0.4, 0]
    assert rates(99, 100, decay_fraction=1e-6) == [0.8, 0]
    assert rates(10, 20, 60, 100, warmup_steps=20, decay_fraction=1.0) == [0.4, 0.8, 0.4, 0]


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
        (OptimizerConfig(args={"b1": "x"}), r"^adamw does not take {'b1': 'x'}: unsupported operand type.*'str'$"),
        (OptimizerConfig(args={"b1": 1j}), r"^adamw does not take {'b1': 1j}: its state would change its shapes"),
        (OptimizerConfig("sgd", args={"momentum": 10**30}), "^sgd does not take {'momentum': 10{30}}: "),
    ],
)
def test_wrong_names_and_arguments_are_refused_with_the_nearest(config, message):
    with pytest.raises(ZooError, match=message):
        make_optimizer(config, 10)


def test_rates_scale_the_updates_of_matching_parameters():
    plain, scaled = (
        make_optimizer(OptimizerConfig("adamw", 0.1, weight_decay=0.1, rates=rates), 10)
        for rates in ({}, {"conv": 10, "*/bias": 0.5, "bn*": 0})
    )
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    before, _ = plain.update(gradients, plain.init(PARAMS), PARAMS)
    after, _ = scaled.update(gradients, scaled.init(PARAMS), PARAMS)
    np.testing.assert_allclose(after["conv"]["kernel"], 10 * before["conv"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(after["conv"]["bias"], 5 * before["conv"]["bias"], rtol=1e-6)
    assert not after["bn"]["scale"].any()


def test_frozen_parameters_stay_and_have_no_gradient_and_no_moments():
    config = OptimizerConfig("adamw", 0.1, weight_decay=0.1, freeze=["conv"])
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(PARAMS)
    loss = jax.grad(lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(stop_frozen(config, params))))
    gradients = loss(PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["conv"]))
    updates, _ = optimizer.update(gradients, state, PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["conv"]))
    assert updates["bn"]["scale"].all()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < sum(leaf.size for leaf in jax.tree.leaves(PARAMS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ["con"]}, "unknown pattern in optimizer.freeze 'con'; did you mean conv"),
        ({"rates": {"fc": 2}}, "unknown pattern in optimizer.rates 'fc'; there are"),
        ({"freeze": ["*"]}, "leaves no parameter to train"),
    ],
)
def test_patterns_that_match_nothing_are_refused(settings, message):
    with pytest.raises(ZooError, match=message.replace("*", ".*")):
        check_patterns(OptimizerConfig(**settings), PARAMS)


def test_muons_updates_of_a_convolution_are_near_orthogonal():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    params = {"conv": {"kernel": kernel, "bias": jnp.ones(8)}}
    optimizer = make_optimizer(OptimizerConfig("muon", 1.0, schedule="constant"), 10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    singular = np.linalg.svd(np.asarray(updates["conv"]["kernel"]).reshape(36, 8), compute_uv=False)
    assert singular.max() / singular.min() < 2  # five Newton-Schulz steps; of the gradient itself it is 3
    gradients = {"conv": {"kernel": kernel, "bias": 100 * jnp.ones(8)}}
    scaled, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"]["bias"], scaled["conv"]["bias"], rtol=1e-5)  # Adam: no matter how large
