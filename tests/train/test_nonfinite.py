"""A loss or a gradient that is not finite stops a run by default (test_loop.py); here the step is skipped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import tiny

import train
from runs import fingerprint
from train.data.batches import Batches
from train.interrupt import Stop
from train.loop import Trainer
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.timing import Phases
from zoo import ZooError

BAD = (7, 8)  # steps whose batch has NaN as its weights


def skipping(workdir, **changes):
    config = tiny(workdir, **changes)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, nonfinite="skip"))


@pytest.fixture
def bad_batches(monkeypatch):
    read = Batches.__call__

    def sometimes_bad(self, k):
        batch = read(self, k)
        return {**batch, "weight": batch["weight"] * (np.float32("nan") if k in BAD else np.float32(1))}

    monkeypatch.setattr(Batches, "__call__", sometimes_bad)


@pytest.mark.parametrize("mode", ["jit", "mesh", "pmap"])
def test_a_skipped_step_leaves_everything_but_the_count_as_it_was(mode, bad_batches, tmp_path):
    config = skipping(tmp_path / "run", parallel=mode, task=train.Classification())
    dataset = config.data.load((8, 8, 1))
    with Trainer(config, tmp_path / "run", dataset, Phases()) as trainer, Stop() as stop:
        trainer.train(stop, until=BAD[0])
        before = trainer.layout.fetch(trainer.state)
        trainer.train(stop, until=BAD[1])
        after = trainer.layout.fetch(trainer.state)
    assert (before.step, after.step) == BAD
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=before.step), before)


def test_a_run_counts_what_it_skips_and_goes_on(bad_batches, tmp_path):
    result = train.run(skipping(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {10: 2.0}
    assert all(np.isfinite(list(row.values())[2:]).all() for row in rows)
    assert result["steps"] == 30


def test_an_interval_of_skipped_steps_is_reported_and_counted_later(bad_batches, tmp_path, capsys):
    train.run(skipping(tmp_path / "run", log=train.LogConfig(every=1)))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert steps == [step for step in range(1, 31) if step - 1 not in BAD]
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {10: 2.0}
    assert "step 9: nothing was finite in the last 2 steps, which were skipped" in capsys.readouterr().out


def test_a_run_that_skips_too_many_steps_in_a_row_ends_and_is_saved(monkeypatch, tmp_path):
    monkeypatch.setattr(train.loop, "MOST_SKIPPED", 10)
    read = Batches.__call__

    def bad_from_3_on(self, k):
        batch = read(self, k)
        return {**batch, "weight": batch["weight"] * np.float32("nan" if k >= 3 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", bad_from_3_on)
        with pytest.raises(ZooError, match="nothing was finite in the last 10 steps: stopped at step 15"):
            train.run(skipping(tmp_path / "run", eval_every=1000))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["15"]
    train.run(skipping(tmp_path / "run", eval_every=1000, resume=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == {5: 2.0, 20: 10.0}


LEAPING = train.OptimizerConfig("sgd", 1e38, schedule="constant", rates={"*": 1e3})  # an update beyond float32


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """Though loss and gradient of the step are finite; the checkpoint before it stays the newest."""
    config = tiny(tmp_path / "run", steps=2, optimizer=dataclasses.replace(LEAPING, warmup_steps=1), eval_every=1)
    with pytest.raises(ZooError, match="the parameters are not finite at step 2: stopped; earlier checkpoints are"):
        train.run(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_an_update_that_is_not_finite_is_skipped(tmp_path):
    """None of 4 steps is made, though each had a finite loss and gradient."""
    train.run(skipping(tmp_path / "run", steps=4, optimizer=LEAPING, eval_every=4, log=train.LogConfig(every=1)))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["split"] for row in rows] == ["validation"]


def test_a_stopped_run_resumes_by_skipping(bad_batches, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(ZooError, match="is nan at step 8: stopped"):
        train.run(tiny(workdir, eval_every=5))
    train.run(skipping(workdir, eval_every=5, resume=True))
    train.run(skipping(tmp_path / "whole", eval_every=5))
    assert fingerprint(workdir) == fingerprint(tmp_path / "whole")


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(tmp_path):
    """A loss of sqrt(x) at 0: the loss is finite, its gradient is not."""

    class Rooted(train.Classification):
        def loss(self, *args, **kwargs):
            found = super().loss(*args, **kwargs)
            return dataclasses.replace(found, total=found.total + jnp.sqrt(jnp.abs(0 * found.total)))

    config = skipping(tmp_path, task=Rooted())
    dataset = config.data.load((8, 8, 1))
    _, model = train.setup.make_model(config, dataset)
    optimizer = make_optimizer(config.optimizer, config.steps)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    layout = make_layout("jit", 16, 1)
    state = layout.put_state(init_state(variables, optimizer, True))
    params = layout.fetch(state.params)
    step = layout.compile_train(
        make_train_step(config.task, model, dataset.inputs, optimizer, config.optimizer, config.seed), state
    )
    state, metrics = step(state, layout.put_batch(Batches(dataset.train, 16, 0)(0)))
    assert {name: float(value) for name, value in metrics.items()} == {**dict.fromkeys(metrics, 0.0), "skipped": 1.0}
    jax.tree.map(np.testing.assert_array_equal, layout.fetch(state.params), params)
