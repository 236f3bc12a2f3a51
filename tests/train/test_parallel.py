"""jit, mesh and pmap compute the same; micro-batches too; nothing compiles twice."""

import dataclasses

import jax
import numpy as np
import pytest

import zoo
from runs import assert_close, loss_of
from train import AugmentConfig, Classification, Config, ModelConfig, OptimizerConfig
from train.data.batches import Batches
from train.data.source import ArraySplit, Dataset
from train.evaluate import make_eval_step
from train.optimizer import make_optimizer
from train.setup import make_model
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.inputs.image import ImageInputs

INPUTS = ImageInputs((8, 8, 1), (0.3,), (0.4,), tuple("0123456789"))
AUGMENT = AugmentConfig(shift=1, flip=True, rotate=10)


def small_dataset(size=48):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (size, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }
    split = ArraySplit(arrays)
    return Dataset("noise", split, None, None, INPUTS)


def config(model="resnet8", args=None, **changes):
    args = {"width": 4} if args is None else args
    optimizer = OptimizerConfig("sgd", 0.05, args={"momentum": 0.9}, weight_decay=1e-3, clip_norm=1.0, ema=0.9)
    base = Config("", 10, 16, model=ModelConfig(model, args), optimizer=optimizer, task=Classification(augment=AUGMENT))
    return dataclasses.replace(base, **changes)


def adapted(config, dataset, layout):
    """The model as the layout's step applies it."""
    return layout.adapt(make_model(config, dataset)[1])


def steps(config, parallel, n=5):
    """Host state and metrics per step after n steps, and the sums of an evaluation."""
    dataset = small_dataset()
    layout = make_layout(parallel, config.batch_size, config.optimizer.accumulate)
    model = adapted(config, dataset, layout)
    optimizer = make_optimizer(config.optimizer, config.steps)
    plain = zoo.create_model(config.model.name, num_classes=10, **config.model.args)
    variables = plain.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    state = layout.put_state(init_state(variables, optimizer, config.optimizer.ema is not None))
    step = layout.compile_train(
        make_train_step(config.task, model, INPUTS, optimizer, config.optimizer, config.seed, layout.axis_name), state
    )
    batches, seen = Batches(dataset.train, config.batch_size, 0), []
    for k in range(n):
        state, metrics = step(state, layout.put_batch(batches(k)))
        jax.block_until_ready(metrics)
        seen.append(layout.fetch(metrics))
    evaluate = layout.compile_eval(make_eval_step(config.task, model, INPUTS, layout.axis_name))
    sums = layout.fetch(evaluate(state.eval_variables(), None, layout.put_batch(batches(0)))[0])
    return layout.fetch(state), seen, sums


@pytest.fixture(scope="module")
def on_one_device():
    return steps(config(), "jit")


@pytest.mark.slow
def test_mixing_on_a_mesh_is_mixing_on_one_device():
    """With two examples a device, the neighbour of every second one lies on another device."""
    augment = AugmentConfig(crop_area=0.5, rand_layers=1, cutout=3, mixup=1.0, cutmix=1.0)
    one, eight = (steps(config(task=Classification(augment=augment)), parallel) for parallel in ("jit", "mesh"))
    assert_close(one, eight)


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_eight_devices_agree_with_one(parallel, on_one_device):
    assert jax.device_count() == 8
    assert_close(on_one_device, steps(config(), parallel))


def test_mesh_agrees_with_dropout():
    changes = config("simple_cnn", {"widths": (4,), "hidden_size": 16, "dropout_rate": 0.5})
    assert_close(steps(changes, "jit"), steps(changes, "mesh"))


def test_auto_is_mesh_on_several_devices():
    assert make_layout("auto", 16, 1).mode == "mesh"


def test_batch_statistics_are_of_the_whole_batch(on_one_device):
    """One step from running mean 0 with momentum 0.9 leaves a tenth of the batch's own mean, on eight devices too."""
    state, _, _ = steps(config(), "pmap", n=1)
    alone, _, _ = steps(config(), "jit", n=1)
    mean = state.collections["batch_stats"]["bn1"]["mean"]
    assert np.abs(mean).max() > 1e-3
    assert_close(alone.collections, state.collections)


@pytest.mark.parametrize("parallel", ["jit", "mesh", "pmap"])
def test_micro_batches_equal_one_batch(parallel):
    plain = config("simple_cnn", {"widths": (4,), "hidden_size": 16})
    split = dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, accumulate=2))
    assert_close(steps(plain, "jit"), steps(split, parallel))


def test_batch_norm_sees_one_micro_batch_at_a_time(on_one_device):
    plain = config()
    split = dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, accumulate=2))
    with pytest.raises(AssertionError):
        assert_close(on_one_device, steps(split, "jit"))


def test_gradients_average_over_examples_not_batches():
    """Examples of weight zero count neither in the loss nor in the gradient, as if the batch were smaller."""
    c = config("simple_cnn", {"widths": (4,), "hidden_size": 16}, task=Classification())
    model = zoo.create_model("simple_cnn", num_classes=10, widths=(4,), hidden_size=16)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    optimizer = make_optimizer(c.optimizer, 10)
    step = make_train_step(c.task, model, INPUTS, optimizer, c.optimizer, c.seed)
    batch = Batches(small_dataset().train, 16, 0)(0)
    half = {name: array[:8] for name, array in batch.items()}
    masked = {**batch, "weight": np.repeat(np.float32([1, 0]), 8)}
    assert_close(
        step(init_state(variables, optimizer, True), half), step(init_state(variables, optimizer, True), masked)
    )


@pytest.mark.parametrize("parallel", ["jit", "mesh", "pmap"])
def test_nothing_compiles_after_the_first_step(parallel):
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(name) if "backend_compile" in name else None
    )
    c, dataset = config(), small_dataset()
    layout = make_layout(parallel, 16, 1)
    model = adapted(c, dataset, layout)
    optimizer = make_optimizer(c.optimizer, 10)
    plain = zoo.create_model("resnet8", num_classes=10, width=4)
    variables = plain.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    state = layout.put_state(init_state(variables, optimizer, True))
    step = layout.compile_train(
        make_train_step(c.task, model, INPUTS, optimizer, c.optimizer, c.seed, layout.axis_name), state
    )
    batches = Batches(dataset.train, 16, 0)
    counts = []
    for k in range(4):
        state, metrics = step(state, layout.put_batch(batches(k)))
        jax.block_until_ready(metrics)
        layout.fetch(metrics)
        counts.append(len(compilations))
    assert counts[0] > 0
    assert counts[1:] == counts[:1] * 3


def test_the_step_makes_no_host_transfer():
    c, dataset = config(), small_dataset()
    layout = make_layout("jit", 16, 1)
    model = adapted(c, dataset, layout)
    optimizer = make_optimizer(c.optimizer, 10)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    state = layout.put_state(init_state(variables, optimizer, True))
    step = layout.compile_train(make_train_step(c.task, model, INPUTS, optimizer, c.optimizer, c.seed), state)
    batch = layout.put_batch(Batches(dataset.train, 16, 0)(0))
    with jax.transfer_guard("disallow"):
        state, _ = step(state, batch)
        step(state, batch)


def test_state_is_donated():
    c, dataset = config(), small_dataset()
    layout = make_layout("jit", 16, 1)
    model = adapted(c, dataset, layout)
    optimizer = make_optimizer(c.optimizer, 10)
    state = layout.put_state(
        init_state(model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)), optimizer, True)
    )
    layout.compile_train(make_train_step(c.task, model, INPUTS, optimizer, c.optimizer, c.seed), state)(
        state, layout.put_batch(Batches(dataset.train, 16, 0)(0))
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("parallel", "batch_size", "accumulate", "message"),
    [
        ("mesh", 12, 1, "8 or 16 does"),
        ("pmap", 12, 1, "does not divide among 8 devices"),
        ("mesh", 16, 4, "micro-batches of 4 do not divide among 8 devices"),
        ("pmap", 16, 4, "not divisible by optimizer.accumulate 4"),
    ],
)
def test_a_batch_that_devices_do_not_divide_is_refused(parallel, batch_size, accumulate, message):
    with pytest.raises(zoo.ZooError, match=message):
        make_layout(parallel, batch_size, accumulate)


def test_label_smoothing_changes_only_the_training_loss():
    logits = np.float32([[5.0, 0.0, 0.0]])
    batch = {"image": np.zeros((1, 8, 8, 1), np.uint8), "label": np.array([0]), "weight": np.ones(1, np.float32)}
    smooth = Classification(label_smoothing=0.3)
    p = np.log(np.exp(logits) / np.exp(logits).sum())[0]
    evaluated, trained = (float(loss_of(smooth, INPUTS, logits, batch, train).total) for train in (False, True))
    assert evaluated == pytest.approx(-p[0], abs=1e-6)
    assert trained == pytest.approx(-(0.8 * p[0] + 0.1 * p[1] + 0.1 * p[2]), abs=1e-6)
