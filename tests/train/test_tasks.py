"""The task protocol, by a recipe of a user's own that uses all of it; distillation, multi-label, forecasting."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_processes import finish_all

import train
import zoo
from runs import ROOT, assert_close, environment, fingerprint, finish, start
from train.commands.report import draw_report
from train.recipes import load_recipe
from train.report.page import Options
from train.setup import Parts
from zoo.__main__ import main as zoo_main

RECIPE = pathlib.Path(__file__).parent / "recipes" / "chase.py"


@pytest.fixture(scope="module")
def chase():
    return load_recipe(str(RECIPE))


def parts_of(chase, parallel="jit", mesh=None, hidden_size=16, **optimizer):
    config = chase.config()
    settings = dataclasses.replace(config.optimizer, **optimizer)
    model = train.ModelConfig("ring_value", {"hidden_size": hidden_size})
    config = dataclasses.replace(config, parallel=parallel, mesh=mesh, model=model, optimizer=settings)
    return Parts.of(config, config.data.load((1, 1, 8)))


def trained(chase, parallel, steps=4, **optimizer):
    """State and metrics of a few steps of the recipe's task on a layout, as arrays on the host."""
    parts = parts_of(chase, parallel, **optimizer)
    layout, batches = parts.layout, parts.batches()
    state = parts.with_constants(parts.first_state())
    step, metrics = parts.train_step(state), []
    for k in range(steps):
        state, found = step(state, layout.put_batch(batches(k)))
        metrics.append(layout.fetch(found))
    scores = parts.evaluator()(state.eval_variables(), parts.dataset.validation, False, lambda done, total: None)
    return jax.tree.map(np.asarray, layout.stored(state)), metrics, scores


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_a_tasks_own_state_is_the_same_on_every_layout(chase, parallel):
    (one, first, score), (eight, metrics, scores) = trained(chase, "jit"), trained(chase, parallel)
    np.testing.assert_array_equal(one.extra.rows["place"], eight.extra.rows["place"])
    assert int(eight.extra.params["steps"]) == 4
    parts = [(s.params, s.extra.params["target"], s.extra.carry) for s in (one, eight)]
    assert_close(*parts)
    for a, b in zip(first, metrics, strict=True):
        np.testing.assert_array_equal(a["visits"], b["visits"])  # an array that adds up over devices
    assert scores["mean_value"] == pytest.approx(score["mean_value"], rel=1e-5)
    assert scores["visited"] == score["visited"]


def test_a_target_network_lies_like_the_parameters_and_rows_like_the_batch(chase):
    parts = parts_of(chase, "mesh", "data=2,fsdp=4", hidden_size=2**14)  # large enough for fsdp to split
    placed, layout = parts.layout.shardings(parts.abstract_state()), parts.layout
    assert placed.extra.params["target"] == placed.params
    assert "fsdp" in str(placed.params["hidden"]["kernel"].spec)
    assert placed.extra.rows["place"] == placed.extra.carry == layout.split


def test_micro_batches_cut_the_carry_and_see_the_whole_rest(chase):
    whole, parts = trained(chase, "jit"), trained(chase, "jit", accumulate=4)
    assert_close((whole[0].params, whole[0].extra.carry), (parts[0].params, parts[0].extra.carry))
    np.testing.assert_array_equal(whole[0].extra.rows["place"], parts[0].extra.rows["place"])


def test_a_skipped_step_leaves_the_tasks_state(chase):
    state, metrics, _ = trained(chase, "jit", steps=2, nonfinite="skip", learning_rate=float("inf"))
    assert [m["skipped"] for m in metrics] == [1.0, 1.0]
    assert int(state.extra.params["steps"]) == 0
    assert int(state.step) == 2


def test_a_recipe_of_ones_own_runs_resumes_evaluates_reports_and_loads(tmp_path):
    """Each in a process of its own, killed in between; equal to the undisturbed run."""
    finish(RECIPE, "--workdir", tmp_path / "whole")
    running = start(RECIPE, "--workdir", tmp_path / "killed", "--steps", "40", "--eval-every", "5")
    while not (tmp_path / "killed/checkpoints/5").is_dir() and running.poll() is None:
        pass
    running.kill()
    running.communicate()
    shutil.rmtree(tmp_path / "killed")  # of other settings; what is killed next has the same
    running = start(RECIPE, "--workdir", tmp_path / "killed")
    while not (tmp_path / "killed/checkpoints/10").is_dir() and running.poll() is None:
        pass
    running.kill()
    running.communicate()
    done = finish(RECIPE, "--workdir", tmp_path / "killed", "--resume")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
    assert "best actions: " in done.stdout
    meta = json.loads((tmp_path / "whole/checkpoints/40/meta/metadata").read_text())
    saved = {*meta["digests"]["task"]}
    assert {"rows/place", "params/steps", "params/target/head/bias"} <= saved
    assert not any("reward" in name for digests in meta["digests"].values() for name in digests)  # a constant
    scored = finish("evaluate", tmp_path / "whole", "--split", "validation", "--recipe", RECIPE).stdout
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert f"mean_value {result['validation']['mean_value']:.4f}" in scored
    assert "(32 examples)" in scored
    assert finish("report", tmp_path / "whole", "--recipe", RECIPE).stdout.strip().endswith("report.html")
    loads = "import sys, zoo, chase; print(zoo.load(sys.argv[1]).model.hidden_size)"
    loaded = subprocess.run(
        [sys.executable, "-c", loads, tmp_path / "whole"],
        env={**environment(), "PYTHONPATH": f"{ROOT}:{RECIPE.parent}"},
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "16", loaded.stderr


@pytest.mark.slow
def test_two_processes_collect_every_example_once_and_keep_the_tasks_state(tmp_path):
    finish(RECIPE, "--workdir", tmp_path / "one", "--parallel", "jit")
    finish_all(2, RECIPE, "--workdir", tmp_path / "two")
    (_, one, first, _), (_, two, second, _) = (fingerprint(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(map(json.loads, one.splitlines()), map(json.loads, two.splitlines()), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4)
    assert second["validation"] == pytest.approx(first["validation"], rel=1e-4)


def test_a_run_of_an_unknown_task_says_how_to_name_its_recipe(tmp_path):
    finish(RECIPE, "--workdir", tmp_path / "run", "--steps", "2")
    done = finish("evaluate", tmp_path / "run", status=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "RingData" in done.stderr
    assert "--recipe FILE" in done.stderr


def test_a_task_and_data_that_do_not_go_together_are_refused(tmp_path):
    config = train.Config(str(tmp_path / "x"), 1, 16, data=train.SeriesData(), task=train.Classification())
    with pytest.raises(zoo.ZooError, match="is no classifier"):
        train.run(dataclasses.replace(config, model=train.ModelConfig("lstm_forecaster")))
    assert not (tmp_path / "x").exists()


DIGITS = {"steps": 60, "batch_size": 32, "eval_every": 30}
SMALL = train.ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train.run(train.Config(str(folder), **DIGITS, model=SMALL, log=train.LogConfig(tensorboard=False)))
    return folder


def distilled(folder, teacher, **settings):
    task = train.Distillation(teacher=str(teacher), **settings)
    config = train.Config(str(folder), **DIGITS, model=SMALL, task=task, log=train.LogConfig(10, tensorboard=False))
    train.run(config)
    return folder


def test_distillation_at_temperature_1_and_alpha_1_is_the_cross_entropy_to_the_teacher(teacher):
    """The divergence is the cross-entropy to the teacher's probabilities less their entropy."""
    run = zoo.load(teacher)
    task = train.Distillation(teacher=str(teacher), temperature=1.0, alpha=1.0)
    dataset = train.ImageData().load((8, 8, 1))
    batch = next(dataset.test.eval_batches(64))
    model = run.model.clone(hidden_size=8)
    args, _ = run.inputs.arguments(batch)
    student = model.init(jax.random.key(1), *args)
    forward = train.forward.Forward(model, run.inputs, student, step=0)
    extra = train.Extra(constants=task.constants(dataset))
    loss = task.loss(forward, batch, extra, jax.random.key(0), train=True)
    taught = jax.nn.softmax(run.model.apply(run.variables, *args))
    learned = jax.nn.log_softmax(model.apply(student, *args))
    expected = float(np.sum(np.asarray(taught) * (np.log(np.asarray(taught)) - np.asarray(learned))))
    assert float(loss.total) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_the_soft_targets_does_not_shrink_with_the_temperature(teacher):
    """Of order 1 / T^2 without the factor T^2: at T 100 against T 10 a hundredth."""
    run, dataset = zoo.load(teacher), train.ImageData().load((8, 8, 1))
    batch = next(dataset.test.eval_batches(64))
    student = run.model.init(jax.random.key(1), *run.inputs.arguments(batch)[0])

    def norm(temperature):
        task = train.Distillation(teacher=str(teacher), temperature=temperature, alpha=1.0)
        extra = train.Extra(constants=task.constants(dataset))

        def loss(params):
            forward = train.forward.Forward(run.model, run.inputs, {"params": params}, step=0)
            return task.loss(forward, batch, extra, jax.random.key(0), train=True).total

        leaves = jax.tree.leaves(jax.grad(loss)(student["params"]))
        return np.sqrt(sum(float((leaf**2).sum()) for leaf in leaves))

    assert norm(100.0) / norm(10.0) == pytest.approx(1.0, abs=0.3)


def test_a_teacher_is_not_saved_and_read_again_on_resume(teacher, tmp_path):
    folder = distilled(tmp_path / "student", teacher)
    meta = json.loads((folder / "checkpoints/60/meta/metadata").read_text())
    assert {*meta["digests"]} == {"model", "optimizer"}
    half = tmp_path / "half"
    config = train.config.read_settings(json.loads((folder / "config.json").read_text())["config"])
    train.run(dataclasses.replace(config, workdir=str(half), steps=30))
    train.run(dataclasses.replace(config, workdir=str(half), resume=True))
    assert (half / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    assert zoo.load(folder).model == zoo.load(teacher).model


def test_a_teacher_of_other_labels_is_refused(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"task\.teacher 'lenet5' takes images of"):
        distilled(tmp_path / "x", "lenet5")
    with pytest.raises(zoo.ZooError, match=r"task\.teacher must name a run folder"):
        distilled(tmp_path / "y", "")
    assert not (tmp_path / "x").exists()


def test_multi_label_metrics_count_every_label_once():
    task = train.MultiLabel()
    logits = np.array([[2.0, -1.0, 3.0], [-1.0, -2.0, 4.0], [1.0, 1.0, 1.0]], np.float32)
    labels = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]], np.float32)
    batch = {"image": logits, "labels": labels, "weight": np.array([1, 1, 0], np.float32)}

    class Logits:
        inputs = type("Inputs", (), {"arguments": staticmethod(lambda batch: ((batch["image"],), {}))})

        def __call__(self, x, train=False):
            return jax.numpy.asarray(x)

    loss = task.loss(Logits(), batch, train.Extra(), None, train=False)
    expected = np.mean(np.log1p(np.exp(-np.abs(logits[:2]))) + np.maximum(logits[:2], 0) - labels[:2] * logits[:2])
    metrics = task.metrics({**{k: np.asarray(v) for k, v in loss.sums.items()}, "count": float(loss.count)})
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["f1"] == pytest.approx(2 * 3 / (3 + 4))
    assert metrics["exact_match"] == 0.5
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_a_table_of_images_and_their_labels_trains_and_predicts(tmp_path, capsys):
    from PIL import Image

    rows = ["file,labels,split"]
    for k in range(24):
        colours = [name for i, name in enumerate(("red", "green")) if k >> i & 1]
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = 255 * ("red" in colours), 255 * ("green" in colours)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{';'.join(colours)},{'train' if k < 16 else 'validation' if k < 20 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    model = train.ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16})
    config = train.Config(
        str(tmp_path / "run"), 150, 8, eval_every=150, model=model,
        data=train.MultiLabelData(path=str(tmp_path / "labels.csv"), image_size=8), task=train.MultiLabel(),
        optimizer=train.OptimizerConfig("adam", 1e-2), log=train.LogConfig(tensorboard=False),
    )  # fmt: skip
    result = train.run(config)
    assert result["test"]["f1"] == 1.0
    inputs = zoo.load(tmp_path / "run").inputs
    assert (inputs.labels, inputs.exclusive) == (("green", "red"), False)
    assert zoo_main(["predict", str(tmp_path / "run"), str(tmp_path / "23.png"), str(tmp_path / "20.png")]) == 0
    both, none = capsys.readouterr().out.splitlines()[-2:]
    assert "green" in both
    assert "red" in both
    assert none.endswith("20.png: ")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n", "must have the columns file and labels"),
        ("file,labels\nno.png,cat\n", "no image file"),
        ("file,labels\nx.png,\n", "names no label"),
        ("file,labels,split\nx.png,cat,trainig\n", "did you mean train"),
    ],
)
def test_a_wrong_table_of_labels_is_refused(tmp_path, table, message):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(zoo.ZooError, match=message):
        train.MultiLabelData(path=str(tmp_path / "t.csv"), image_size=8).load((8, 8, 3))


def test_no_digit_of_a_scene_is_in_two_splits():
    dataset = train.MultiLabelData().load((28, 28, 1))
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == tuple(
        train.data.multi_label.SIZES.values()
    )
    for split in (dataset.train, dataset.validation, dataset.test):
        counts = split.arrays["labels"].sum(axis=1)
        assert counts.min() >= 1
        assert counts.max() <= 4
    parts = [train.data.multi_label._digits(name)[0] for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 1797
    again = train.MultiLabelData().load((28, 28, 1))
    np.testing.assert_array_equal(again.test.arrays["image"], dataset.test.arrays["image"])


def test_mackey_glass_is_the_published_series():
    """The first values of the benchmark's file, which is given with four places (Jang 1993)."""
    series = train.data.series.mackey_glass(1125)
    assert series[0] == 1.2
    assert series[118:1118].std() == pytest.approx(0.2272, abs=2e-3)
    assert (series[118:].min(), series[118:].max()) == (pytest.approx(0.42, abs=0.02), pytest.approx(1.31, abs=0.02))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_forecast_counts_once_whatever_the_batch_size(batch_size):
    dataset = train.SeriesData(context=10, warmup=6).load(())
    inputs = dataset.inputs
    for split, rows in ((dataset.validation, range(568, 618)), (dataset.test, range(618, 1118))):
        targets = []
        for batch in split.eval_batches(batch_size):
            due = (batch["counted"] > 0) & (batch["weight"] > 0)[:, None]
            targets.append(batch["targets"][due])
        found = inputs.decode(np.concatenate(targets))[:, 0]
        np.testing.assert_allclose(found, train.data.series.mackey_glass(1124)[[t + 6 for t in rows]], atol=1e-6)


def test_training_windows_have_no_held_out_target():
    dataset = train.SeriesData(context=10, warmup=6, horizon=6).load(())
    values = train.data.series.mackey_glass(1124)
    batch = dataset.train.read(np.arange(dataset.train.size))
    known = {round(float(v), 5) for v in values[: 568 + 6]}
    seen = dataset.inputs.decode(batch["targets"][batch["counted"] > 0])[:, 0]
    assert {round(float(v), 5) for v in seen} <= known
    np.testing.assert_array_equal(batch["counted"].sum(axis=1), 4)


def test_a_forecaster_learns_a_table_of_its_own(tmp_path, capsys):
    """A sine and its cosine, of which one is to be predicted: an LSTM has it to a few per cent in seconds."""
    t = np.arange(400) * 0.2
    lines = ["day,sine,cosine", *(f"2024-01-01,{np.sin(x)},{np.cos(x)}" for x in t)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = train.SeriesData(path=str(tmp_path / "t.csv"), targets=["sine"], horizon=3, context=20, warmup=8)
    config = train.Config(
        str(tmp_path / "run"), 200, 32, eval_every=100, model=train.ModelConfig("lstm_forecaster", {"hidden_size": 16}),
        data=data, task=train.Forecasting(), optimizer=train.OptimizerConfig("adam", 1e-2),
        log=train.LogConfig(tensorboard=False),
    )  # fmt: skip
    result = train.run(config)
    assert result["test"]["nrmse"] < 0.1
    model, variables, inputs = zoo.load(tmp_path / "run")
    assert inputs.columns == ("sine", "cosine")
    predicted = inputs.decode(model.apply(variables, inputs.encode(tmp_path / "t.csv")[None]))[0, -1]
    assert predicted[0] == pytest.approx(np.sin(402 * 0.2), abs=0.1)
    assert zoo_main(["forecast", str(tmp_path / "run"), str(tmp_path / "t.csv")]) == 0
    names, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert names == "sine"
    np.testing.assert_allclose([float(row) for row in rows], np.sin(np.arange(400, 403) * 0.2), atol=0.1)
    assert zoo_main(["predict", str(tmp_path / "run"), "x"]) == 2
    assert "it is a forecaster (python -m zoo forecast" in capsys.readouterr().err
    report = draw_report(Options(str(tmp_path / "run")))
    assert all(name in report.read_text() for name in ("curves", "predictions", "errors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1\n", "row 1 has 1 columns, not 2"),
        ("a\nx\n", "no column of numbers"),
        ("a\n1\nnan\n", "row 2 of column 'a' is no finite number"),
        ("a\n", "a line of column names and rows"),
        ("a\n1\n2\n", "too few to train on"),
    ],
)
def test_a_wrong_table_of_numbers_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(zoo.ZooError, match=message):
        train.SeriesData(path=str(tmp_path / "t.csv")).load(())


def test_series_are_read_from_npz_without_unpickling(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.arange(300.0), b=np.ones(300))
    assert train.SeriesData(path=str(tmp_path / "two.npz"), targets=["a"]).load(()).inputs.targets == ("a",)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(zoo.ZooError, match="is no NPZ file of numbers"):
        train.SeriesData(path=str(tmp_path / "objects.npz")).load(())
