"""What saves memory or time computes what the plain step does; bfloat16 and float16 up to their rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from runs import assert_close, assert_resumes
from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import GROWS_AFTER, LossScale, init_state, make_train_step
from zoo.inputs.text import TextInputs

INPUTS = TextInputs("char", "abcdefghijklmnop", 16)
GPT = {"vocab_size": 16, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_length": 16}
SGD = OptimizerConfig("sgd", 0.1, args={"momentum": 0.9}, clip_norm=1.0)
SCALED = dataclasses.replace(SGD, loss_scale=2.0**8, nonfinite="skip")
BATCH = 8


@functools.cache
def batch():
    tokens = np.random.default_rng(0).integers(0, 16, (BATCH, 17), np.int32)
    ones = {name: np.ones((BATCH, 16), np.float32) for name in ("characters", "weight")}
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "row": np.arange(BATCH, dtype=np.int32), **ones}


@functools.cache
def variables():
    return zoo.create_model("nanogpt", **GPT).init(jax.random.key(0), batch()["tokens"])


@functools.cache
def compiled(optimizer=None, **fields):
    optimizer = {None: SGD, "scaled": SCALED, "accumulated": dataclasses.replace(SGD, accumulate=4)}[optimizer]
    model = zoo.create_model("nanogpt", **GPT, **fields)
    config = Config("", 10, BATCH, data=TextData(), task=LanguageModel(), optimizer=optimizer)
    transformation, layout = make_optimizer(optimizer, 10), make_layout("jit", BATCH, optimizer.accumulate)
    given = jax.tree.map(lambda leaf: leaf.astype(fields.get("param_dtype", leaf.dtype)), variables())
    if fields.get("scan_layers"):
        like = jax.eval_shape(model.init, jax.random.key(0), batch()["tokens"])["params"]
        given = {"params": zoo.transformer.layers.stacked(given["params"], like)}
    state = init_state(given, transformation, False, loss_scale=optimizer.loss_scale)
    state = layout.put_state(state)
    step = layout.compile_train(
        make_train_step(config.task, model, INPUTS, transformation, config.optimizer, config.seed), state
    )
    return layout, jax.tree.map(np.array, state), step.lower(state, layout.put_batch(batch())).compile()


def run(optimizer=None, n=3, **fields):
    """Parameters as separate layers, and metrics, after n steps."""
    layout, state, step = compiled(optimizer, **fields)
    state, given = layout.put_state(state), layout.put_batch(batch())
    for _ in range(n):
        state, metrics = step(state, given)
    return zoo.transformer.layers.unstacked(layout.fetch(state.params)), layout.fetch(metrics), layout.fetch(state)


def temporaries(optimizer=None, **fields):
    return compiled(optimizer, **fields)[2].memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_computes_the_same_in_less_memory(remat):
    assert_close(run()[:2], run(remat=remat)[:2])
    assert_close(run()[:2], run(remat=remat, scan_layers=True)[:2])
    assert temporaries(remat=remat, scan_layers=True) < 0.8 * temporaries(scan_layers=True)


def test_scanned_layers_compute_the_same():
    assert_close(run()[:2], run(scan_layers=True)[:2])


def test_micro_batches_compute_the_same_in_less_memory():
    assert_close(run()[:2], run("accumulated")[:2])
    assert temporaries("accumulated") < temporaries()


def test_a_donated_state_is_written_in_place():
    _, state, step = compiled()
    memory = step.memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1000  # the metrics


@pytest.mark.parametrize(("dtype", "optimizer", "tolerance"), [("bfloat16", None, 2**-5), ("float16", "scaled", 2**-8)])
def test_half_precision_computes_the_same_up_to_rounding(dtype, optimizer, tolerance):
    """A few steps of rounding, which is 2^-8 of bfloat16 and 2^-11 of float16; parameters stay float32."""
    ours, plain = run(optimizer, dtype=dtype), run()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours[0])} == {"float32"}
    assert_close(plain[0], ours[0], tolerance)
    assert ours[1].get("skipped", 0.0) == 0.0
    np.testing.assert_allclose(ours[1]["loss"], plain[1]["loss"], rtol=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_half_precision_parameters_are_divided_by_the_whole_count(dtype):
    """128 tokens times a scale of 2^10: float16 ends before 2^16. Each operation rounds to 2^-8 in bfloat16."""
    layout, state, step = compiled("scaled", param_dtype=dtype)
    state = dataclasses.replace(state, scale=LossScale(np.float32(2.0**10), state.scale.since))
    _, metrics = step(layout.put_state(state), layout.put_batch(batch()))
    np.testing.assert_allclose(metrics["grad_norm"], run(n=1)[1]["grad_norm"], rtol=2**-5)


def test_runs_whose_parameters_are_float16_are_refused(tmp_path):
    model = ModelConfig("simple_cnn", {"widths": (4,), "param_dtype": "float16"})
    with pytest.raises(zoo.ZooError, match="in float16 lose small updates"):
        train.run(Config(str(tmp_path / "run"), 1, 16, model=model))
    assert not (tmp_path / "run").exists()


def test_a_scaled_loss_changes_nothing_in_float32():
    ours = run("scaled")
    assert_close(run()[0], ours[0])
    assert ours[1]["skipped"] == 0.0


def test_an_overflow_halves_the_scale_and_skips_the_update():
    layout, state, step = compiled("scaled", dtype="float16")
    high = dataclasses.replace(state, scale=LossScale(np.float32(2.0**30), state.scale.since))
    after, metrics = step(layout.put_state(high), layout.put_batch(batch()))
    assert metrics["skipped"] == 1.0
    assert float(after.scale.factor) == 2.0**29
    jax.tree.map(np.testing.assert_array_equal, layout.fetch(after.params), state.params)


def test_the_scale_grows_after_so_many_finite_steps():
    scale = LossScale(jnp.float32(8), jnp.int32(GROWS_AFTER - 2))
    once, twice = scale.after(True), scale.after(True).after(True)
    assert (float(once.factor), int(once.since)) == (8.0, GROWS_AFTER - 1)
    assert (float(twice.factor), int(twice.since)) == (16.0, 0)
    assert (float(twice.after(False).factor), int(twice.after(False).since)) == (8.0, 0)


@pytest.mark.parametrize(("factor", "end"), [(4.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_scale_ends_at_1_and_never_at_0(factor, end):
    scale = LossScale(jnp.float32(factor), jnp.int32(0))
    for _ in range(5):
        scale = scale.after(False)
    assert float(scale.factor) == end


def test_a_run_resumes_with_its_loss_scale(tmp_path):
    args = {"widths": (4,), "hidden_size": 16, "dtype": "float16"}
    optimizer = OptimizerConfig("adam", 1e-3, loss_scale=2.0**24, nonfinite="skip")  # which overflows at first
    config = Config(
        str(tmp_path / "whole"), 20, 16, eval_every=10, model=ModelConfig("simple_cnn", args), optimizer=optimizer,
        log=LogConfig(10, tensorboard=False),
    )  # fmt: skip
    train.run(config)
    assert_resumes(tmp_path / "whole", config, tmp_path / "half")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_scale": 0.0, "nonfinite": "skip"}, "optimizer.loss-scale must be above 0, not 0.0"),
        ({"loss_scale": float("inf"), "nonfinite": "skip"}, "must be above 0, not inf"),
        ({"loss_scale": 1024.0}, "loss-scale needs optimizer.nonfinite skip"),
    ],
)
def test_a_wrong_loss_scale_is_refused(settings, message):
    with pytest.raises(zoo.ZooError, match=message):
        Config("x", 1, 8, optimizer=OptimizerConfig(**settings)).check()
