"""Early stopping: `patience`, `best`; a resumed run stops where the undisturbed one did, bit for bit."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

import train
import zoo
from runs import fingerprint
from train import AugmentConfig, Classification, Config, LogConfig, ModelConfig, OptimizerConfig
from train.interrupt import Stop
from train.loop import Trainer
from train.records import Patience
from train.timing import Phases
from zoo import ZooError

# After step 15 the learning rate is 0: the scores stay, the dropout keys, batches and moments do not.
PATIENT = Config(
    "", 60, 16, parallel="jit", eval_every=5, keep=20, patience=3,
    model=ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16}),
    task=Classification(augment=AugmentConfig(shift=1)),
    optimizer=OptimizerConfig("adam", 3e-3, schedule="linear", decay_steps=15), log=LogConfig(7, tensorboard=False),
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:the learning rate is 0 after step 15")


def run(folder, **changes):
    return train.run(dataclasses.replace(PATIENT, workdir=str(folder), **changes))


def rows(folder, split="validation"):
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that its patience ended, and its result."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return folder, run(folder)


def test_patience_counts_evaluations_since_the_best():
    patience = Patience(3, {"best": None, "worse": 0})
    ended = []
    for score in (0.5, 0.4, 0.5, 0.6, None, 0.6, 0.1, 0.7):
        patience.add(score)
        ended.append((patience.worse, patience.ended))
    # An equal score is no better one, and one that is not finite is none.
    counts = [(0, False), (1, False), (2, False), (0, False), (1, False), (2, False), (3, True), (0, False)]
    assert ended == counts
    assert patience.to_json() == {"best": 0.7, "worse": 0}
    endless = Patience(None, {"best": 0.5, "worse": 10**6})
    assert not endless.ended


def test_a_run_stops_when_its_patience_ends(stopped):
    folder, result = stopped
    scores = [row["accuracy"] for row in rows(folder)]
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))  # the first of equals
    assert result["steps"] == 5 * (best + 1 + PATIENT.patience) < PATIENT.steps
    assert [row["step"] for row in rows(folder)] == list(range(5, result["steps"] + 1, 5))
    assert max(int(step.name) for step in (folder / "checkpoints").iterdir()) == result["steps"]
    assert "stopping early: no better score in the last 3 evaluations" in (folder / "train.log").read_text()
    assert result["test"]["accuracy"] > 0.1


def test_without_patience_a_run_takes_all_its_steps(stopped, tmp_path):
    assert run(tmp_path / "run", patience=None, steps=50)["steps"] == 50 > stopped[1]["steps"]


@pytest.mark.parametrize("best", [None, "-loss", "loss", "-accuracy"])
def test_the_best_checkpoint_maximises_the_named_metric(best, tmp_path):
    result = run(tmp_path / "run", best=best, patience=None, steps=20)
    name = (best or "accuracy").removeprefix("-")
    sign = -1 if (best or "").startswith("-") else 1
    chosen = max(rows(tmp_path / "run"), key=lambda row: (sign * row[name], row["step"]))
    assert result["best_step"] == chosen["step"]
    assert result["validation"][name] == chosen[name]
    here, there = (zoo.load(tmp_path / "run", step=step).variables for step in ("best", chosen["step"]))
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_patience_goes_by_the_named_metric(stopped, tmp_path):
    """The highest loss is the first evaluation's, so that three more end the run."""
    result = run(tmp_path / "run", best="loss")
    assert (result["steps"], result["best_step"]) == (20, 5)


def test_an_unknown_metric_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ZooError, match=r"^unknown metric in best 'los'; did you mean loss"):
        run(tmp_path / "run", best="-los")


def interrupted(folder, step, evaluating):
    """Trains to `step`, where a signal stops the run: after the step, or in the middle of its evaluation."""
    config = dataclasses.replace(PATIENT, workdir=str(folder))
    dataset = config.data.load((8, 8, 1))
    with Stop() as stop, Trainer(config, folder, dataset, Phases()) as trainer:
        trainer.train(stop, until=step - 1)
        if evaluating:
            trainer.journal.passing = lambda done, total: setattr(stop, "signal", signal.SIGTERM)
        else:
            stop.signal = signal.SIGTERM
        trainer.train(stop)


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("worse", [0, 1, 2])
def test_a_resumed_run_stops_at_the_same_step_bit_exactly(evaluating, worse, stopped, tmp_path):
    """Interrupted with so many evaluations since the best, which the checkpoint keeps."""
    folder, result = stopped
    step = result["steps"] - PATIENT.eval_every * (PATIENT.patience - worse)
    step += PATIENT.eval_every if evaluating else 2
    with pytest.raises(SystemExit) as left:
        interrupted(tmp_path / "run", step, evaluating)
    assert left.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert rows(tmp_path / "run")[-1]["step"] < step
    resumed = run(tmp_path / "run", resume=True)
    assert (resumed["steps"], resumed["best_step"]) == (result["steps"], result["best_step"])
    metas, *others = fingerprint(folder)
    resumed_metas, *resumed_others = fingerprint(tmp_path / "run")
    assert resumed_others == others
    for at, meta in metas.items():
        assert resumed_metas[at] == meta


def test_a_run_that_stopped_early_stays_stopped_until_its_patience_grows(stopped, tmp_path):
    folder, result = stopped
    shutil.copytree(folder, tmp_path / "run")
    again = run(tmp_path / "run", resume=True)
    assert {**again, "seconds": None} == {**result, "seconds": None}
    longer = run(tmp_path / "run", resume=True, patience=5)
    assert longer["steps"] == result["steps"] + 2 * PATIENT.eval_every
    undisturbed = run(tmp_path / "other", patience=5)
    assert undisturbed["steps"] == longer["steps"]
    metas = [fingerprint(tmp_path / name)[0][longer["steps"]]["digests"] for name in ("run", "other")]
    assert metas[0] == metas[1]


@pytest.mark.parametrize("changes", [{"patience": 3}, {"patience": None, "best": "accuracy"}])
def test_patience_and_best_need_validation_data(tmp_path, changes):
    data = train.ImageData(validation_fraction=0.0)
    with pytest.raises(ZooError, match="best and patience need validation data, which digits does not have"):
        run(tmp_path / "x", data=data, **changes)
    assert not (tmp_path / "x").exists()
