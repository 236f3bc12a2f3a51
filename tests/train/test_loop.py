"""A run from settings to result: what it writes, what stops it, and that stopping loses nothing."""

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import train
import zoo
from runs import TINY, command, environment, finish
from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig
from train.interrupt import Stop
from train.journal import lives
from train.loop import Trainer
from train.sharding import Layout
from train.timing import Phases
from zoo import ZooError


def tiny(workdir, **changes):
    config = Config(
        workdir=str(workdir),
        steps=30,
        batch_size=16,
        parallel="jit",
        eval_every=10,
        model=ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16}),
        task=Classification(augment=AugmentConfig(shift=1)),
        optimizer=OptimizerConfig("adam", 3e-3, ema=0.9),
        log=LogConfig(every=5),
    )
    return dataclasses.replace(config, **changes)


def lines(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, train.run(tiny(workdir))


def test_a_run_folder_has_every_promised_file(finished):
    workdir, result = finished
    names = {path.name for path in workdir.iterdir()}
    expected = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "export", "result.json", "curves.png"}
    expected |= {"train.log", "status.json"}
    assert names == expected | {"example.png"}
    assert sorted(path.name for path in (workdir / "export").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {"data", "setup", "compile", "train", "evaluate", "checkpoint", "total"} <= result["seconds"].keys()


def test_metrics_have_a_line_per_log_and_per_evaluation(finished):
    workdir, result = finished
    rows = lines(workdir)
    assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 15, 20, 25, 30]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [10, 20, 30]
    assert {"loss", "accuracy", "grad_norm"} <= rows[0].keys()
    best = max((row for row in rows if row["split"] == "validation"), key=lambda row: (row["accuracy"], row["step"]))
    assert result["best_step"] == best["step"]
    assert result["validation"] == {name: best[name] for name in ("loss", "accuracy")}


def test_tensorboards_events_are_the_metrics_and_the_rate(finished):
    workdir, _ = finished
    (path,) = (workdir / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # a record: length, its checksum, an event, its checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert (events[0].file_version, events[1].session_log.status, events[1].step) == ("brain.Event:2", 1, 1)
    scalars = {(value.tag, event.step): value.simple_value for event in events[2:] for value in event.summary.value}
    assert min(scalars.pop(("examples_per_second", step)) for step in (5, 10, 15, 20, 25, 30)) > 0
    assert scalars == {
        (f"{row['split']}/{name}", row["step"]): pytest.approx(row[name], rel=1e-6)
        for row in lines(workdir)
        for name in row.keys() - {"step", "split"}
    }


def test_a_line_has_a_rate_where_a_step_was_timed(tmp_path, capsys):
    """Not of the first step, which is compiled, nor of the first one after a resume."""
    config = tiny(tmp_path / "run", log=LogConfig(1), optimizer=OptimizerConfig("sgd", 0.1, schedule="constant"))
    for steps in (2, 4):
        train.run(dataclasses.replace(config, steps=steps, resume=steps > 2))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "/" in line]
    assert [line.split("  ")[0] for line in shown if " left" not in line] == ["step 1/2", "step 3/4"]
    tags = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert (tags.count(b"train/loss"), tags.count(b"examples_per_second")) == (4, 2)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    result = train.run(tiny(tmp_path / "run", keep=1, steps=60))
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {60, result["best_step"]}


def test_zoo_load_gives_the_model_that_was_tested(finished):
    workdir, result = finished
    from sklearn.datasets import load_digits

    for folder in (workdir, workdir / "export"):
        model, variables, inputs = zoo.load(folder)
        digits = load_digits()
        pixels = np.rint(digits.images[-360:] * (255 / 16)).astype(np.uint8)[..., None]
        images = np.stack([inputs.encode(image) for image in pixels])
        right = np.asarray(model.apply(variables, images)).argmax(-1) == digits.target[-360:]
        assert right.mean() == pytest.approx(result["test"]["accuracy"], abs=1e-9)
        assert inputs.labels == tuple("0123456789")


def test_zoo_load_by_step_and_by_kind_of_weights(finished):
    workdir, result = finished
    best, last = zoo.load(workdir).variables, zoo.load(workdir, step="last").variables
    numbered = zoo.load(workdir, step=30).variables
    jax.tree.map(np.testing.assert_array_equal, last, numbered)
    averaged, plain = zoo.load(workdir, step=30, ema=True).variables, zoo.load(workdir, step=30, ema=False).variables
    jax.tree.map(np.testing.assert_array_equal, averaged, numbered)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (averaged, plain)), strict=True))
    exported = zoo.load(workdir / "export", step=result["best_step"]).variables
    jax.tree.map(np.testing.assert_array_equal, best, exported)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"step": 7}, "no checkpoint of step 7; there are "),
        ({"step": "newest"}, 'step must be "best", "last" or a number'),
    ],
)
def test_zoo_load_of_a_checkpoint_that_does_not_exist(args, message, finished):
    with pytest.raises(ZooError, match=message):
        zoo.load(finished[0], **args)


def test_zoo_load_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ZooError, match="is not a run folder"):
        zoo.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model": 3}')
    with pytest.raises(ZooError, match="describes no run"):
        zoo.load(tmp_path)
    about = {"model": {"name": "lenet5", "args": {}}, "inputs": {"kind": "image", "shape": [32, 32, 1]}}
    about["inputs"] |= {"mean": [0.5], "std": [0.5], "labels": []}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ZooError, match="has no checkpoint yet"):
        zoo.load(tmp_path)


def test_a_run_made_with_another_model_is_refused(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    about = json.loads((workdir / "config.json").read_text())
    about["model"]["args"]["hidden_size"] = 17
    (workdir / "config.json").write_text(json.dumps(about))
    with pytest.raises(ZooError, match=r"is of another model: params/fc1/bias is \(16,\), not \(17,\)"):
        zoo.load(workdir)


def test_a_folder_that_is_not_empty_needs_resume(finished):
    with pytest.raises(ZooError, match="is not empty: --resume continues it, --workdir DIR names another"):
        train.run(tiny(finished[0]))


def test_resume_refuses_other_settings_and_allows_more_steps(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    with pytest.raises(ZooError, match=r"on resume only .* may change: seed was 0, not 5"):
        train.run(tiny(workdir, resume=True, seed=5))
    before = (workdir / "config.json").read_text()
    with pytest.raises(ZooError, match="is at step 30 already, after steps 20"):
        train.run(tiny(workdir, resume=True, steps=20))
    assert (workdir / "config.json").read_text() == before
    with pytest.warns(UserWarning, match="the learning rate is 0 after step 30"):
        result = train.run(tiny(workdir, resume=True, steps=40))
    assert result["steps"] == 40
    assert [row["step"] for row in lines(workdir) if row["split"] == "validation"] == [10, 20, 30, 40]


def test_an_infinite_loss_stops_at_its_step_and_keeps_the_checkpoints(tmp_path):
    """A rate that leaps to infinity after the warm-up: the loss of the step that follows is not finite."""
    optimizer = OptimizerConfig("sgd", 1e30, schedule="constant", warmup_steps=29)
    config = tiny(tmp_path / "run", optimizer=dataclasses.replace(optimizer, learning_rate=1e38), eval_every=1)
    with pytest.raises(ZooError, match=r"(loss|grad_norm) is (nan|inf) at step [23]: stopped"):
        train.run(config)
    assert np.isfinite(jax.tree.leaves(zoo.load(tmp_path / "run").variables)[0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig("simple_cn")}, "unknown model 'simple_cn'; did you mean simple_cnn"),
        ({"model": ModelConfig("simple_cnn", {"width": 3})}, "no field 'width'; did you mean widths"),
        ({"model": ModelConfig("simple_cnn", {"num_classes": 3})}, "num_classes=3, but digits has 10 classes"),
        ({"model": ModelConfig("simple_cnn", {"dtype": np.float32})}, "a dtype is a string"),
        ({"model": ModelConfig("lenet5")}, "LeNet5 takes images .* of 16 pixels or more"),
        (
            {"model": ModelConfig("simple_cnn", weights="absent.safetensors")},
            "'absent.safetensors' does not exist: give",
        ),
        ({"data": ImageData("digit")}, "unknown data set 'digit'; did you mean digits"),
        ({"optimizer": OptimizerConfig("adamm")}, "unknown optimizer 'adamm'; did you mean"),
        ({"batch_size": 20, "parallel": "mesh"}, "16 or 24 does"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_a_users_mistake_leaves_no_folder(changes, message, tmp_path):
    with pytest.raises(ZooError, match=message):
        train.run(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_training_starts_from_given_weights(finished, tmp_path):
    weights = str(finished[0] / "export" / "model.safetensors")
    model = ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16}, weights)
    optimizer = OptimizerConfig("sgd", 0.0, schedule="constant")
    result = train.run(tiny(tmp_path / "run", steps=1, model=model, optimizer=optimizer))
    assert result["test"]["accuracy"] == finished[1]["test"]["accuracy"]


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_the_checkpoints_intact(tmp_path):
    """The largest file a process may write stands in for the end of the disk: a wider model no longer fits."""
    workdir = tmp_path / "run"
    finish("cnn", "--workdir", workdir, *TINY)
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "bash"]
    args = [*limited, *command("cnn", "--workdir", workdir, "--resume", "--steps", "200")]
    env = {**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (workdir / "checkpoints").glob("[0-9]*[0-9]")) == before
    zoo.load(workdir)


@pytest.mark.slow
def test_events_that_find_the_disk_full_are_lost_without_a_word(tmp_path):
    """The run has one error line; nothing is printed as events are written or as Python ends."""
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "bash"]
    args = [*TINY, "--log.tensorboard", "--log.every", "1", "--eval-every", "120"]
    run = [*limited, *command("cnn", "--workdir", tmp_path / "run", *args)]
    env = {**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: [Errno 27] File too large")
    assert len(done.stderr.splitlines()) == 1


def test_records_that_find_the_disk_full_lose_no_pending_save(tmp_path):
    """Closing a file writes again what could not be written."""
    workdir, config = tmp_path / "run", tiny(tmp_path / "run")
    dataset = config.data.load((8, 8, 1))

    def trained():
        with Stop() as stop, Trainer(config, workdir, dataset, Phases()) as trainer, open("/dev/full", "w") as full:
            trainer.train(stop, until=10)
            trainer.records._file = full
            trainer.train(stop, until=15)

    with pytest.raises(OSError, match="No space left"):
        trained()
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["10"]
    assert json.loads((workdir / "status.json").read_text())["activity"].startswith("ended by OSError: [Errno 28]")
    assert not lives(workdir)


def test_a_run_that_cannot_begin_unlocks_its_folder(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        train.run(tiny(workdir, resume=True, steps=40))
    assert not lives(workdir)


def test_a_batch_larger_than_memory_ends_in_one_line(tmp_path):
    with pytest.raises(ZooError, match=r"^out of memory \(.* PiB .*\); a lower batch-size or a higher optimi"):
        train.run(tiny(tmp_path / "run", batch_size=2**50))
    assert not (tmp_path / "run").exists()


def test_a_step_larger_than_the_devices_memory_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Layout, "compile_train", lambda *_: lambda *_: (jax.numpy.zeros(2**50), {}))
    with pytest.raises(ZooError, match=r"^out of memory \(RESOURCE_EXHAUSTED: Out of memory allocating"):
        train.run(tiny(tmp_path / "run"))


def test_profile_writes_a_trace(tmp_path):
    train.run(tiny(tmp_path / "run", steps=10, profile="3:5"))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_without_validation_data_the_last_step_is_the_best(tmp_path):
    result = train.run(tiny(tmp_path / "run", data=ImageData(validation_fraction=0.0)))
    assert result["best_step"] == 30
    assert "validation" not in result
    assert result["test"]["accuracy"] > 0.1


# What a run is measured by: steps, epochs, hours; and what may fail at its end.


def short(workdir, **changes):
    """Of 100 examples."""
    optimizer = OptimizerConfig("adam", 1e-2, schedule="linear", warmup_steps=10)
    log = LogConfig(every=10, tensorboard=False)
    data = ImageData("digits", train_examples=100)
    return tiny(workdir, **{"data": data, "optimizer": optimizer, "log": log, **changes})


def test_every_row_has_the_epoch_and_the_examples_and_training_its_rate(tmp_path):
    train.run(short(tmp_path / "run"))
    rows = lines(tmp_path / "run")
    assert [(row["step"], row["examples"], row["epoch"]) for row in rows] == [
        (step, 16 * step, 16 * step / 100) for step in (10, 10, 20, 20, 30, 30)
    ]
    rates = [row["learning_rate"] for row in rows if row["split"] == "train"]
    assert rates == pytest.approx([9e-3, 1e-2 * 11 / 20, 1e-2 * 1 / 20])  # of the last update each


def test_epochs_stand_for_steps_and_more_of_them_resume(tmp_path):
    """100 examples in batches of 16: two epochs are 12.5 steps, rounded up."""
    assert train.run(short(tmp_path / "run", epochs=2))["steps"] == 13
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["steps"], stored["epochs"], stored["optimizer"]["decay_steps"]) == (13, None, 13)
    with pytest.warns(UserWarning, match="the learning rate is 0 after step 13"):
        assert train.run(short(tmp_path / "run", epochs=3, resume=True))["steps"] == 19
    with pytest.raises(ZooError, match="is at step 19 already, after steps 7"):
        train.run(short(tmp_path / "run", epochs=1, resume=True))
    for wrong in (0, -1):
        with pytest.raises(ZooError, match="epochs must be a number above 0"):
            train.run(short(tmp_path / "wrong", epochs=wrong))


def test_a_run_ends_well_after_its_hours_and_continues(tmp_path, capsys):
    workdir = tmp_path / "run"
    result = train.run(short(workdir, steps=100_000, hours=1e-6))
    step = result["steps"]
    assert step < 100
    assert f"hours are over at step {step}" in capsys.readouterr().out
    assert result["test"]["accuracy"] == json.loads((workdir / "result.json").read_text())["test"]["accuracy"]
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert (workdir / "export" / "model.safetensors").is_file()
    assert train.run(short(workdir, steps=100_000, hours=1e-6, resume=True))["steps"] > step


def test_a_run_that_cannot_be_tested_leaves_its_result_and_export(tmp_path, monkeypatch):
    def fails(self, evaluation, split):
        if not evaluation.final and split.size == 143:  # of validation, while it trains
            return {"loss": 1.0, "accuracy": 0.5}
        raise RuntimeError("out of ink")

    monkeypatch.setattr(Classification, "evaluate", fails)
    with pytest.warns(UserWarning, match="on test failed"), pytest.raises(RuntimeError, match="out of ink"):
        train.run(short(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (stored["validation"], "test" in stored) == ({"loss": 1.0, "accuracy": 0.5}, False)
    assert zoo.load(tmp_path / "run" / "export").inputs.labels == tuple(map(str, range(10)))


@pytest.mark.parametrize("broken", ["example", "curves", "final"])
def test_what_fails_after_training_costs_neither_result_nor_export(tmp_path, monkeypatch, broken):
    def fails(*args, **kwargs):
        raise RuntimeError("out of ink")

    if broken == "final":
        evaluate = Classification.evaluate
        final = lambda self, evaluation, split: (fails if evaluation.final else evaluate.__get__(self))(  # noqa: E731
            evaluation, split
        )
        monkeypatch.setattr(Classification, "evaluate", final)
    elif broken == "example":
        monkeypatch.setattr(Classification, "example", fails)
    else:
        monkeypatch.setattr("train.loop.draw_curves", fails)
    with pytest.warns(UserWarning, match="failed.*: RuntimeError: out of ink"):
        result = train.run(short(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["test"]["accuracy"] == result["test"]["accuracy"]
    assert stored["seconds"]["total"] > 0
    assert zoo.load(tmp_path / "run" / "export").inputs.labels == tuple(map(str, range(10)))
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
