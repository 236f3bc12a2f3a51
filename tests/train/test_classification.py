"""Classification: class weights, and more metrics, which are those of scikit-learn at any batch size and layout."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight

import train
from runs import assert_close, evaluated
from train import ArraySplit, Classification, Config, Dataset, LogConfig, ModelConfig, OptimizerConfig
from train.__main__ import main
from train.data.source import LazySplit
from train.setup import Parts
from train.sharding import make_layout
from zoo import ZooError
from zoo.inputs.image import ImageInputs

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
EXTRA = ["top5", "precision", "recall", "f1", "per_class", "auc"]
SIZE = 203  # of the test split: no multiple of a batch


def examples(size, seed, classes=7):
    """Noise, with a spot whose place follows the label; classes are the rarer the higher their number."""
    rng = np.random.default_rng(seed)
    share = 0.6 ** np.arange(classes)
    label = rng.choice(classes, size, p=share / share.sum()).astype(np.int32)
    image = rng.integers(0, 200, (size, 8, 8, 1), np.uint8)
    image[np.arange(size), label, label] = 255
    return ArraySplit({"image": image, "label": label})


DATASET = Dataset(
    "spots", examples(96, 0), None, examples(SIZE, 1), ImageInputs((8, 8, 1), (0.4,), (0.25,), LABELS)
)  # fmt: skip


def parts(task=None, parallel="jit", dataset=DATASET, **optimizer):
    settings = OptimizerConfig(**{"name": "sgd", "learning_rate": 1.0, "schedule": "constant", **optimizer})
    model = ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16})
    config = Config("", 10, 16, parallel=parallel, model=model, task=task or Classification(), optimizer=settings)
    return Parts.of(config, dataset)


@pytest.fixture(scope="module")
def trained():
    """Variables after a few steps, which predict several classes, not all rightly."""
    made = parts(name="adam", learning_rate=3e-2)
    state = made.first_state()
    step = made.train_step(state)
    for batch in made.batches().from_step(0, 30):
        state, _ = step(state, made.layout.put_batch(batch))
    return made.model, made.layout.fetch(state.variables())


@pytest.fixture(scope="module")
def probabilities(trained):
    model, variables = trained
    images = DATASET.inputs.normalize(DATASET.test.arrays["image"])
    return softmax(model.apply(variables, images))


def softmax(logits):
    """Probabilities that sum to one in float64, as scikit-learn demands."""
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


def scores(labels, probabilities, names=LABELS):
    """What scikit-learn makes of it."""
    everything, predicted = range(len(names)), probabilities.argmax(axis=1)
    found = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "loss": reference.log_loss(labels, probabilities, labels=everything),
        "top5": reference.top_k_accuracy_score(labels, probabilities, k=5, labels=everything),
        "auc": reference.roc_auc_score(labels, probabilities, multi_class="ovr", labels=everything),
    }
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        found[name] = score(labels, predicted, labels=everything, average="macro", zero_division=0)
        each = score(labels, predicted, labels=everything, average=None, zero_division=0)
        found |= {f"{name}/{label}": value for label, value in zip(names, each, strict=True)}
    return found


def metrics(trained, parallel, batch_size, split=DATASET.test, **settings):
    model, variables = trained
    layout = make_layout(parallel, batch_size, 1)
    task = Classification(**{"extra_metrics": EXTRA, **settings})
    return evaluated(task, model, DATASET.inputs, layout, batch_size, variables, split)


@pytest.mark.parametrize(
    ("parallel", "batch_size"),
    [("jit", 1), ("jit", 16), ("jit", SIZE), ("jit", 500), ("mesh", 8), ("mesh", 64), ("pmap", 8), ("pmap", 64)],
)
def test_every_metric_is_scikit_learns_and_counts_every_example_once(parallel, batch_size, trained, probabilities):
    expected = scores(DATASET.test.arrays["label"], probabilities)
    assert len(set(probabilities.argmax(axis=1))) > 3  # of a model that predicts several classes
    assert 0.2 < expected["accuracy"] < 0.95  # and errs
    found = metrics(trained, parallel, batch_size)
    assert found.keys() == expected.keys()
    # Counts are exact; losses and the order of close probabilities are those of float32.
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_mirror_image_has_its_share_in_every_metric(trained):
    model, variables = trained
    images = DATASET.inputs.normalize(DATASET.test.arrays["image"])
    logits = (model.apply(variables, images) + model.apply(variables, images[:, :, ::-1])) / 2
    expected = scores(DATASET.test.arrays["label"], softmax(logits))
    assert metrics(trained, "jit", 16, test_flip=True) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("names", [[], ["f1"], ["top5", "auc"], ["per_class"]])
def test_only_the_metrics_that_are_named_are_computed(names, trained):
    found = metrics(trained, "jit", 64, extra_metrics=names)
    each = {f"{name}/{label}" for name in ("precision", "recall", "f1") for label in LABELS}
    assert found.keys() == {"loss", "accuracy", *names} - {"per_class"} | (each if "per_class" in names else set())


def test_classes_without_examples_count_as_zero_and_not_in_the_area(trained):
    """In the first 20 examples not every class occurs."""
    labels = DATASET.test.arrays["label"][:20]
    assert 2 <= len(set(labels)) < len(LABELS)
    few = ArraySplit({name: array[:20] for name, array in DATASET.test.arrays.items()})
    found = metrics(trained, "jit", 16, split=few)
    model, variables = trained
    logits = model.apply(variables, DATASET.inputs.normalize(few.arrays["image"]))
    ours, predicted = softmax(logits), np.argmax(logits, axis=1)
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        expected = score(labels, predicted, labels=range(len(LABELS)), average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected, rel=1e-6)
    areas = [reference.roc_auc_score(labels == label, ours[:, label]) for label in sorted(set(labels))]
    assert found["auc"] == pytest.approx(np.mean(areas), rel=1e-6)
    one = ArraySplit({name: array[labels == 0] for name, array in few.arrays.items()})
    with pytest.raises(ZooError, match=r"task\.extra-metrics auc needs examples of at least two classes"):
        metrics(trained, "jit", 4, split=one)


def test_top5_of_fewer_classes_is_every_example():
    inputs = ImageInputs((8, 8, 1), (0.4,), (0.25,), LABELS[:3])
    made = parts(dataset=Dataset("three", examples(32, 2, 3), None, examples(40, 3, 3), inputs))
    variables = made.layout.fetch(made.first_state().variables())
    task = Classification(extra_metrics=["top5"])
    found = evaluated(task, made.model, inputs, made.layout, 16, variables, made.dataset.test)
    assert found["top5"] == 1.0


# Class weights.

WEIGHTS = {"ant": 0.25, "cat": 3.0, "gnu": 8.0}


def stepped(task, parallel="jit", **optimizer):
    """The parameters before and after a step of plain gradient descent at rate 1, and its metrics."""
    made = parts(task, parallel, **optimizer)
    state = made.with_constants(made.first_state())
    before = made.layout.fetch(state.params)
    batch = made.batches()(0)
    state, sums = made.train_step(state)(state, made.layout.put_batch(batch))
    return made.model, before, made.layout.fetch(state.params), made.layout.fetch(sums), batch


def by_label(task):
    return np.array([task.class_weights.get(label, 1.0) for label in LABELS])


def test_the_gradient_is_that_of_the_weighted_mean():
    task = Classification(class_weights=WEIGHTS)
    model, before, after, sums, batch = stepped(task)
    weight = by_label(task)[batch["label"]].astype(np.float32)
    assert len(set(weight)) > 2

    def loss(params):
        logits = model.apply({"params": params}, DATASET.inputs.normalize(batch["image"]), train=True)
        each = -jax.nn.log_softmax(logits)[jnp.arange(16), batch["label"]]
        return jnp.sum(weight * each) / jnp.sum(weight), (each, logits)

    gradients, (each, logits) = jax.grad(loss, has_aux=True)(before)
    assert_close(jax.tree.map(np.subtract, before, after), gradients)
    found = task.metrics(sums)
    assert found["loss"] == pytest.approx(np.average(each, weights=weight), rel=1e-5)
    assert found["accuracy"] == np.mean(np.argmax(logits, axis=1) == batch["label"])  # of examples, not of weights
    assert sums["count"] == pytest.approx(weight.sum(), rel=1e-6)
    plain = stepped(Classification())[2]
    with pytest.raises(AssertionError):
        assert_close(after, plain)


@pytest.mark.parametrize(
    ("parallel", "optimizer"), [("jit", {"accumulate": 4}), ("mesh", {}), ("mesh", {"accumulate": 2}), ("pmap", {})]
)
@pytest.mark.parametrize("settings", [{"class_weights": WEIGHTS}, {"balance_classes": True}], ids=["given", "balanced"])
def test_weights_are_the_same_in_every_layout_and_with_micro_batches(parallel, optimizer, settings):
    task = Classification(**settings)
    _, _, one, sums, _ = stepped(task)
    _, _, many, other, _ = stepped(task, parallel, **optimizer)
    assert_close(one, many)
    assert task.metrics(other) == pytest.approx(task.metrics(sums), rel=1e-5)


def test_equal_weights_change_nothing():
    plain = stepped(Classification())[2]
    assert_close(plain, stepped(Classification(class_weights=dict.fromkeys(LABELS, 3.0)))[2])


def test_balanced_weights_are_scikit_learns():
    labels = DATASET.train.arrays["label"]
    assert len(set(labels)) == len(LABELS)
    found = Classification(balance_classes=True).constants(DATASET)["class_weights"]
    expected = compute_class_weight("balanced", classes=np.arange(len(LABELS)), y=labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert Classification().constants(DATASET) == {}


def test_evaluation_is_not_weighted(trained):
    assert metrics(trained, "jit", 16, class_weights=WEIGHTS) == metrics(trained, "jit", 16)
    assert metrics(trained, "jit", 16, balance_classes=True) == metrics(trained, "jit", 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": {"cta": 2.0}}, "unknown label in task.class-weights 'cta'; did you mean cat"),
        ({"class_weights": {"cat": float("inf")}}, "task.class-weights cat must be a number above 0, not inf"),
        ({"class_weights": {"cat": True}}, "task.class-weights cat must be a number above 0, not True"),
        ({"class_weights": WEIGHTS, "balance_classes": True}, "set one of them"),
    ],
)
def test_wrong_weights_are_refused(settings, message):
    def check(task):
        task.check()
        task.check_data(DATASET)

    with pytest.raises(ZooError, match=message):
        check(Classification(**settings))


def test_data_larger_than_memory_are_not_balanced():
    lazy = LazySplit(96, lambda indices: DATASET.train.read(np.array(indices)))
    dataset = dataclasses.replace(DATASET, train=lazy)
    with pytest.raises(ZooError, match="balance-classes counts labels in memory; spots has none: use class-weights"):
        Classification(balance_classes=True).check_data(dataset)
    Classification(class_weights=WEIGHTS).check_data(dataset)


# A run.


def test_a_run_records_the_extra_metrics_and_chooses_by_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.loop.Clock.steps_per_second", lambda self, step: 2.0)
    config = Config(
        str(tmp_path / "run"), 30, 16, parallel="jit", eval_every=10, best="f1",
        model=ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16}),
        task=Classification(extra_metrics=EXTRA, class_weights={"3": 1000.0}),
        optimizer=OptimizerConfig("adam", 3e-3), log=LogConfig(10, tensorboard=False),
    )  # fmt: skip
    result = train.run(config)
    assert "  32 examples/s  " in capsys.readouterr().out  # 2 steps of 16 a second, whatever their weights
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if row["split"] == "validation"]
    best = max(validated, key=lambda row: (row["f1"], row["step"]))
    assert result["best_step"] == best["step"]
    assert {"top5", "precision", "recall", "f1", "auc", "recall/3", "precision/9"} <= result["test"].keys()
    progress = ("step", "split", "epoch", "examples")
    assert result["validation"] == {name: value for name, value in best.items() if name not in progress}
    assert all(0 <= value <= 1 for name, value in result["test"].items() if name != "loss")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--batch-size", "48"]) == 0  # its settings are the run's
    assert f"f1 {result['test']['f1']:.4f}" in capsys.readouterr().out


def test_flags_give_metrics_and_weights(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr("train.loop.run", lambda config, *_, **__: configs.append(config))
    flags = ["--task.extra-metrics", "top5", "f1", "--task.class-weights", "3=2.0", "7=0.5", "--best", "f1"]
    assert main(["cnn", "--workdir", str(tmp_path / "run"), *flags]) == 0
    assert configs[0].task.extra_metrics == ["top5", "f1"]
    assert configs[0].task.class_weights == {"3": 2.0, "7": 0.5}
    with pytest.raises(SystemExit) as stop:
        main(["cnn", "--task.extra-metrics", "recal"])
    assert stop.value.code == 2
