"""Folders of texts, and packed documents: none sees another, each target counts once, in every layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from runs import assert_close, assert_resumes, evaluated, loss_of
from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData
from train.commands.evaluate import EvaluateConfig, evaluate_target
from train.data.streams import Stream
from train.optimizer import make_optimizer
from train.report.cells import loss_by_position
from train.setup import make_model
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.run import Run

LENGTHS = (7, 1, 30, 2, 19, 5, 44, 12)  # of documents: 120 tokens
BEGINS = np.cumsum([0, *LENGTHS])[:-1]


def packed(window, lengths=LENGTHS):
    """A stream in which every token is its own position."""
    size = sum(lengths)
    return Stream(np.arange(size).astype(np.uint16), window, np.ones(size, np.float32), np.cumsum([0, *lengths])[:-1])


def document(positions):
    return np.searchsorted(BEGINS, positions, side="right")


# Windows.


def test_segments_are_documents_and_the_first_token_of_each_is_not_predicted():
    batches = packed(6).batches(5, seed=3)
    for k in range(12):
        batch = batches(k)
        of_tokens, of_targets = document(batch["tokens"]), document(batch["targets"])
        np.testing.assert_array_equal(batch["weight"], of_tokens == of_targets)
        same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        np.testing.assert_array_equal(same, of_tokens[:, 1:] == of_tokens[:, :-1])
        assert {name: array.dtype for name, array in batch.items() if name in ("segments", "weight")} == {
            "segments": np.int32,
            "weight": np.float32,
        }


def test_an_epoch_predicts_every_token_but_the_first_of_each_document_once():
    batches = packed(6).batches(5, seed=1)  # 120 tokens are 4 batches of 5 rows of 6
    predicted = np.concatenate([batch["targets"][batch["weight"] > 0] for batch in map(batches, range(4))])
    assert sorted(predicted.tolist()) == sorted(set(range(120)) - set(BEGINS.tolist()))
    assert packed(6).size == len(predicted)


def test_a_single_document_begins_anew_after_its_end():
    batch = packed(8, lengths=(10,)).read(np.array([6]))
    assert batch["tokens"].tolist() == [[6, 7, 8, 9, 0, 1, 2, 3]]
    assert batch["weight"].tolist() == [[1, 1, 1, 0, 1, 1, 1, 1]]
    assert np.diff(batch["segments"]).tolist() == [[0, 0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 150])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_evaluation_counts_each_prediction_within_a_document_once(batch_size, window):
    batches = list(packed(window).eval_batches(batch_size))
    predicted = np.concatenate([batch["targets"][batch["weight"] > 0] for batch in batches])
    assert sorted(predicted.tolist()) == sorted(set(range(120)) - set(BEGINS.tolist()))
    assert set(np.unique([batch["weight"] for batch in batches])) <= {0.0, 1.0}


def test_processes_read_their_own_rows_of_the_global_batch():
    whole = packed(4).batches(6, seed=0)(7)
    parts = [packed(4).batches(6, 0, rows)(7) for rows in np.split(np.arange(6), 3)]
    assert "segments" in whole
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


# Folders.


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    files = {"b.md": "bbbb\r\nb", "a/z.py": "zz", "a/y.txt": "yyy", ".git/x": "xxxx", "a/.h.txt": "hh"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def text_of(stream, inputs):
    return [inputs.decode(piece) for piece in np.split(stream.tokens, stream.begins[1:])]


def test_the_files_of_a_folder_are_documents_in_the_order_of_their_paths(folder):
    whole = TextData(path=str(folder), context=4, validation_fraction=0.0, newlines="unix")
    dataset = whole.load((64,))
    assert dataset.inputs.decode(dataset.train.tokens) == "yyy\nzz\nbbbb\nb"
    assert (dataset.name, dataset.validation, dataset.test) == ("texts", None, None)
    apart = dataclasses.replace(whole, packed=True).load((64,))
    assert text_of(apart.train, apart.inputs) == ["yyy", "zz", "bbbb\nb"]
    held = dataclasses.replace(whole, packed=True, validation_fraction=0.4).load((64,))
    assert text_of(held.train, held.inputs) == ["yyy", "zz", "bb"]  # 11 characters, the last 4 held out
    assert text_of(held.validation, held.inputs) == ["bb\nb"]


def test_parts_of_a_folder_named_after_splits_are_splits(folder):
    (folder / "a").rename(folder / "train")
    (folder / "dev.txt").write_text("zzyy")
    (folder / "test").mkdir()
    (folder / "test" / "1.txt").write_text("yyzz")
    dataset = TextData(path=str(folder), packed=True).load((64,))
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [text_of(split, dataset.inputs) for split in splits] == [["yyy", "zz"], ["zzyy"], ["yyzz"]]


def test_files_that_are_no_text_are_left_out_with_a_warning(folder):
    (folder / "photo.png").write_bytes(b"\x89PNG\xff")
    (folder / "a" / "empty.txt").write_bytes(b"")
    config = TextData(path=str(folder), packed=True, validation_fraction=0.0, newlines="unix")
    with pytest.warns(UserWarning, match=r"left out '.*empty\.txt', '.*: empty, or not UTF-8 text"):
        dataset = config.load((64,))
    assert text_of(dataset.train, dataset.inputs) == ["yyy", "zz", "bbbb\nb"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_folder_without_text_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(zoo.ZooError, match="has no text to train on: no file that is UTF-8, not empty and not hidden"):
        TextData(path=str(tmp_path)).load((64,))


# Models.


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    for i, length in enumerate(rng.integers(1, 60, 60)):
        (root / f"{i:02}.txt").write_text("".join(rng.choice(list("abcdefgh"), length)))
    fields = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "scan_layers": True}
    return Config(
        "", 12, 16, eval_every=6, model=ModelConfig("nanogpt", fields),
        data=TextData(path=str(root), context=32, packed=True), task=LanguageModel(z_loss=1e-3),
        optimizer=OptimizerConfig("adamw", 1e-2, schedule="wsd", clip_norm=1.0, ema=0.9),
        log=LogConfig(6, tensorboard=False),
    )  # fmt: skip


def parts(config):
    dataset = config.data.load((64,))
    _, model = make_model(config, dataset)
    return dataset, model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))


def apart(batch):
    """Tokens, targets and weights [n, window] of the documents of a batch, a row each, from its first position on."""
    rows = []
    for row in zip(*(np.asarray(batch[name]) for name in ("tokens", "targets", "weight", "segments")), strict=True):
        for number in np.unique(row[3]):
            mine = row[3] == number
            rows.append([np.pad(array[mine], (0, (~mine).sum())) for array in row[:3]])
    return [np.stack(arrays) for arrays in zip(*rows, strict=True)]


def summed(model, params, tokens, targets, weight):
    """The summed cross-entropy of rows, each read by itself."""
    log_probabilities = jax.nn.log_softmax(model.apply({"params": params}, tokens))
    return -jnp.sum(jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0] * weight)


def test_loss_and_gradient_of_a_packed_batch_are_those_of_its_documents_read_one_by_one(config):
    dataset, model, variables = parts(config)
    batch = dataset.train.batches(3, 0)(0)
    documents = apart(batch)
    assert len(documents[0]) > 6

    def of_batch(params):
        args, kwargs = dataset.inputs.arguments(batch)
        logits = model.apply({"params": params}, *args, **kwargs)
        return loss_of(config.task, dataset.inputs, logits, batch, train=True).sums["loss"]

    ours = jax.jit(jax.value_and_grad(of_batch))(variables["params"])
    theirs = jax.jit(jax.value_and_grad(lambda params: summed(model, params, *documents)))(variables["params"])
    assert_close(theirs, ours, 1e-5)
    assert ours[0] > 100


def test_a_packed_text_is_evaluated_like_its_documents(config):
    dataset, model, variables = parts(config)
    layout = make_layout("jit", 4, 1)
    metrics = evaluated(config.task, model, dataset.inputs, layout, 4, variables, dataset.validation)
    documents = [np.concatenate(arrays) for arrays in zip(*map(apart, dataset.validation.eval_batches(4)), strict=True)]
    assert documents[2].sum() == dataset.validation.size
    total = float(jax.jit(summed, static_argnums=0)(model, variables["params"], *documents))
    assert metrics["loss"] == pytest.approx(total / dataset.validation.size, rel=1e-5)


def test_the_loss_by_position_begins_anew_in_each_document(config):
    dataset, model, variables = parts(config)
    split = dataclasses.replace(dataset.train, window=8)  # 32 are four windows
    ours = loss_by_position(Run(model, variables, dataset.inputs), split)
    starts = np.linspace(0, split.size - 32, 256).astype(int)
    tokens, targets, weight = apart(dataclasses.replace(split, window=32).read(starts))
    log_probabilities = np.asarray(jax.nn.log_softmax(model.apply(variables, tokens)))
    losses = -np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    assert len(ours) == 32
    np.testing.assert_allclose(ours, np.average(losses, axis=0, weights=weight), rtol=1e-5)


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_eight_devices_with_micro_batches_agree_with_one(parallel, config):
    def after_three_steps(parallel, accumulate):
        dataset, model, variables = parts(config)
        descent = OptimizerConfig("sgd", 0.1, clip_norm=1.0, accumulate=accumulate)
        settings = dataclasses.replace(config, optimizer=descent)
        optimizer = make_optimizer(settings.optimizer, settings.steps)
        layout = make_layout(parallel, 16, accumulate)
        state = layout.put_state(init_state(variables, optimizer, True))
        train_step = make_train_step(
            settings.task, layout.adapt(model), dataset.inputs, optimizer, settings.optimizer, settings.seed,
            layout.axis_name,
        )  # fmt: skip
        step = layout.compile_train(train_step, state)
        batches = dataset.train.batches(16, 0)
        for k in range(3):
            state, metrics = step(state, layout.put_batch(batches(k)))
            jax.block_until_ready(metrics)
        return layout.fetch((state.params, metrics))

    assert_close(after_three_steps("jit", 1), after_three_steps(parallel, 2))


@pytest.mark.slow
def test_a_packed_run_resumes_bit_exactly(config, tmp_path):
    train.run(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    assert_resumes(tmp_path / "whole", config, tmp_path / "half")


def test_a_model_that_cannot_keep_documents_apart_is_refused(config, tmp_path):
    message = "RecurrentLM takes no segments, so it cannot keep documents apart; set data.packed false"
    recurrent = dataclasses.replace(config, model=ModelConfig("lstm_lm", {"hidden_size": 8}))
    with pytest.raises(zoo.ZooError, match=message):
        train.run(dataclasses.replace(recurrent, workdir=str(tmp_path / "run")))
    plain = dataclasses.replace(config.data, packed=False)
    train.run(dataclasses.replace(recurrent, workdir=str(tmp_path / "run"), steps=1, data=plain))
    with pytest.raises(zoo.ZooError, match=message):
        evaluate_target(EvaluateConfig(str(tmp_path / "run"), data=config.data, task=config.task))
