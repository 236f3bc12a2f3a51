"""Language models are trained in every layout, resumed bit-exactly, and evaluated on whole texts."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from runs import assert_close, assert_resumes, evaluated, loss_of
from train import Classification, Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData
from train.__main__ import main
from train.optimizer import make_optimizer
from train.setup import make_model
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.tasks.language_model import with_zeros
from train.tasks.task import Extra

TEXT = "".join(f"{i} green bottles hanging on the wall,\n" for i in range(300))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "bottles.txt"
    path.write_text(TEXT)
    optimizer = OptimizerConfig("adamw", 1e-2, clip_norm=1.0, ema=0.9)
    return Config(
        "", 20, 16, eval_every=5, model=ModelConfig("lstm_lm", {"hidden_size": 8}), data=TextData(path=str(path)),
        task=LanguageModel(reset_state=0.3), optimizer=optimizer, log=LogConfig(5, tensorboard=False),
    )  # fmt: skip


def steps(config, parallel, n=4):
    """Host state and metrics after n steps, the compiled step, and what it was made of."""
    dataset = config.data.load((64,))
    _, model = make_model(config, dataset)
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(parallel, config.batch_size, config.optimizer.accumulate)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    extra = Extra(carry=config.task.carry(model, config.batch_size))
    state = layout.put_state(init_state(variables, optimizer, True, extra))
    adapted, axis = layout.adapt(model), layout.axis_name
    step = layout.compile_train(
        make_train_step(config.task, adapted, dataset.inputs, optimizer, config.optimizer, config.seed, axis), state
    )
    batches, seen = dataset.train.batches(config.batch_size, 0), []
    for k in range(n):
        state, metrics = step(state, layout.put_batch(batches(k)))
        jax.block_until_ready(metrics)
        seen.append(layout.fetch(metrics))
    return layout.fetch(state), seen, step, (model, dataset, batches)


@pytest.fixture(scope="module")
def on_one_device(config):
    return steps(config, "jit")


def test_a_mesh_of_eight_devices_agrees_and_compiles_once(config, on_one_device):
    state, seen, step, _ = steps(config, "mesh")
    assert_close(on_one_device[0], state)
    assert_close(on_one_device[1], seen)
    assert step._cache_size() == 1


def test_pmap_agrees_with_one_device(config, on_one_device):
    """Its carried state too, of which each device has the rows of its part of the batch."""
    state, seen, _, _ = steps(config, "pmap")
    assert_close(on_one_device[0], state)
    assert_close(on_one_device[1], seen)


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_micro_batches_hand_on_their_own_rows(config, on_one_device, parallel):
    accumulate = dataclasses.replace(config.optimizer, accumulate=2)
    state, seen, _, _ = steps(dataclasses.replace(config, optimizer=accumulate), parallel)
    assert_close(on_one_device[0].extra.carry, state.extra.carry)
    assert_close(on_one_device[1], seen)


def test_the_state_is_carried_from_batch_to_batch(config, on_one_device):
    """After four batches without learning, the carry is that of one pass over all their tokens."""
    still = dataclasses.replace(config.optimizer, learning_rate=0.0)
    carried = dataclasses.replace(config, optimizer=still, task=LanguageModel(reset_state=0.0))
    state, _, _, (model, _, batches) = steps(carried, "jit")
    tokens = np.concatenate([batches(k)["tokens"] for k in range(4)], axis=1)
    _, expected = model.apply(state.variables(), tokens, model.init_state(config.batch_size))
    assert_close(jax.tree.map(np.asarray, expected), state.extra.carry)
    assert state.extra.carry["position"].tolist() == [4 * 64] * 16


def test_a_state_that_is_always_reset_is_that_of_the_last_window(config):
    still = dataclasses.replace(config.optimizer, learning_rate=0.0)
    reset = dataclasses.replace(config, optimizer=still, task=LanguageModel(reset_state=1.0))
    state, _, _, (model, _, batches) = steps(reset, "jit")
    _, expected = model.apply(state.variables(), batches(3)["tokens"], model.init_state(config.batch_size))
    assert_close(jax.tree.map(np.asarray, expected), state.extra.carry)


def test_rows_are_reset_with_their_probability_and_whole():
    """Of 20,000 rows a share of 0.1, within five standard deviations; each leaf of a row together."""
    state = {"layers": (jnp.ones((20_000, 3)), jnp.ones((20_000, 2, 2))), "position": jnp.full(20_000, 7)}
    after = with_zeros(state, 0.1, jax.random.key(0), jnp.arange(20_000))
    kept = np.asarray(after["position"]) == 7
    assert abs((~kept).mean() - 0.1) < 5 * math.sqrt(0.1 * 0.9 / 20_000)
    for leaf in jax.tree.leaves(after):
        assert np.array_equal(np.asarray(leaf).reshape(20_000, -1).all(axis=1), kept)
        assert np.array_equal(np.asarray(leaf).reshape(20_000, -1).any(axis=1), kept)


def test_the_cold_loss_is_that_of_windows_read_from_zeros(config, on_one_device):
    state, _, _, (model, dataset, _) = on_one_device
    layout, split = make_layout("jit", 1, 1), dataset.validation
    metrics = evaluated(config.task, model, dataset.inputs, layout, 1, state.variables(), split)
    total = 0.0
    for start in range(0, split.size, 64):
        tokens = split.tokens[start : start + 65].astype(np.int32)
        log_probabilities = np.asarray(jax.nn.log_softmax(model.apply(state.variables(), tokens[None, :-1])[0]))
        total -= float(np.take_along_axis(log_probabilities, tokens[1:, None], axis=1).sum())
    assert metrics["cold_loss"] == pytest.approx(total / split.size, rel=1e-5)
    assert metrics["cold_loss"] != metrics["loss"]


@pytest.mark.parametrize("batch_size", [1, 8, 16])
def test_the_loss_of_a_whole_text_is_the_mean_over_its_tokens(config, on_one_device, batch_size):
    state, _, _, (model, dataset, _) = on_one_device
    layout, split = make_layout("jit", batch_size, 1), dataset.validation
    metrics = evaluated(config.task, model, dataset.inputs, layout, batch_size, state.variables(), split)
    predicted, total = 0, 0.0
    piece = -(-split.size // batch_size)
    for start in range(0, split.size, piece):
        tokens = split.tokens[start : start + piece + 1].astype(np.int32)
        log_probabilities = jax.nn.log_softmax(model.apply(state.variables(), tokens[None, :-1])[0])
        total -= float(np.take_along_axis(np.asarray(log_probabilities), tokens[1:, None], axis=1).sum())
        predicted += len(tokens) - 1
    assert predicted == split.size
    assert metrics["loss"] == pytest.approx(total / predicted, rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(metrics["loss"] / math.log(2))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_bits_per_character_do_not_depend_on_the_tokens(config):
    """A uniform prediction costs log2 of the vocabulary per token; per character less where tokens are longer."""
    data = dataclasses.replace(config.data, tokenizer="bpe", vocab_size=300)
    dataset = data.load((64,))
    batch = next(dataset.validation.eval_batches(4))
    logits = np.zeros((*batch["tokens"].shape, dataset.inputs.vocab_size), np.float32)
    loss = loss_of(config.task, dataset.inputs, logits, batch, train=False)
    metrics = config.task.metrics({**loss.sums, "count": loss.count})
    targets = batch["targets"][batch["weight"] > 0]
    characters = sum(len(dataset.inputs.decode([token])) for token in targets)
    assert characters > len(targets)
    expected = math.log2(dataset.inputs.vocab_size) * len(targets) / characters
    assert metrics["bits_per_character"] == pytest.approx(expected, rel=1e-5)


def test_resume_is_bit_exact_and_a_run_ends_with_a_sample(config, tmp_path, capsys):
    whole = dataclasses.replace(config, workdir=str(tmp_path / "whole"))
    result = train.run(whole)
    out = capsys.readouterr().out
    assert "a sample:\n" in out
    assert f"python -m zoo generate {whole.workdir}" in out
    meta = assert_resumes(tmp_path / "whole", config, tmp_path / "half")
    assert "carry/layers/layer0/0" in meta["digests"]["optimizer"]
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["config"]["task"]["kind"] == "LanguageModel"
    assert result["validation"]["loss"] > 0


def test_a_finished_run_generates_evaluates_and_has_a_report(config, tmp_path, capsys):
    workdir = str(tmp_path / "run")
    train.run(dataclasses.replace(config, workdir=workdir))
    capsys.readouterr()
    from zoo.__main__ import main as zoo_main

    assert zoo_main(["generate", workdir, "--prompt", "1 green", "--length", "30", "--top-k", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("1 green")
    assert len(text) == len("1 green") + 30 + 1
    assert zoo_main(["generate", workdir, "--length", "9", "--num-samples", "2", "--no-repeat-ngram", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines if line.startswith("--- ")] == [
        f"--- sample {n}, log probability" for n in (1, 2)
    ]
    assert zoo_main(["generate", workdir, "--num-samples", "0"]) == 2
    assert capsys.readouterr().err == "error: num-samples must be at least 1, not 0\n"
    assert zoo_main(["generate", workdir, "--prompt", "§"]) == 2
    assert capsys.readouterr().err.startswith("error: '§' is not among the")
    assert zoo_main(["predict", workdir, "1 green"]) == 2
    assert "has no classes: it is a language model" in capsys.readouterr().err
    assert main(["evaluate", workdir, "--split", "validation"]) == 0
    assert "bits_per_character" in capsys.readouterr().out
    assert main(["report", workdir, "--cells", "layer0:3"]) == 0
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert "<h2>cell layer0:3</h2>" in page
    assert main(["report", workdir, "--cells", "layer7:3"]) == 2
    assert "no cell 'layer7:3'; there are layer0:0 to layer0:7" in capsys.readouterr().err
    assert main(["report", workdir]) == 0
    assert "which correlates with the position in the line" in (tmp_path / "run" / "report" / "report.html").read_text()


# A Transformer reads each window by itself.


@pytest.fixture(scope="module")
def of_windows(config):
    fields = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "scan_layers": True}
    optimizer = OptimizerConfig("muon", 1e-2, clip_norm=1.0, ema=0.9)
    return dataclasses.replace(config, model=ModelConfig("nanogpt", fields), optimizer=optimizer)


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_a_transformer_agrees_on_eight_devices_and_carries_nothing(of_windows, parallel):
    ours, seen, _, (model, _, _) = steps(of_windows, "jit")
    assert ours.extra.carry is None
    assert model.max_length == 64
    state, again, step, _ = steps(of_windows, parallel)
    assert_close(ours.params, state.params)
    assert_close(seen, again)
    assert parallel == "pmap" or step._cache_size() == 1


def test_each_window_is_evaluated_by_itself(of_windows):
    dataset = of_windows.data.load((64,))
    _, model = make_model(of_windows, dataset)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    layout, split = make_layout("jit", 1, 1), dataset.validation
    metrics = evaluated(of_windows.task, model, dataset.inputs, layout, 1, variables, split)
    total = 0.0
    for start in range(0, split.size, 64):
        tokens = split.tokens[start : start + 65].astype(np.int32)
        log_probabilities = np.asarray(jax.nn.log_softmax(model.apply(variables, tokens[None, :-1])[0]))
        total -= float(np.take_along_axis(log_probabilities, tokens[1:, None], axis=1).sum())
    assert metrics["loss"] == pytest.approx(total / split.size, rel=1e-5)


@pytest.mark.slow
def test_a_transformers_run_resumes_bit_exactly_and_generates(of_windows, tmp_path, capsys):
    train.run(dataclasses.replace(of_windows, workdir=str(tmp_path / "whole")))
    assert_resumes(tmp_path / "whole", of_windows, tmp_path / "half")
    capsys.readouterr()
    from zoo.__main__ import main as zoo_main

    folder = str(tmp_path / "whole")
    assert (
        zoo_main(["generate", folder, "--prompt", "1 green", "--length", "90", "--stop", "zzz", "--min-p", "0.1"]) == 0
    )
    assert len(capsys.readouterr().out) == len("1 green") + 90 + 1
    assert zoo_main(["generate", folder, "--prompt", "1" * 65]) == 2
    assert "the prompt has 65 tokens, more than the model's max_length of 64" in capsys.readouterr().err
    assert main(["report", folder]) == 0
    assert (tmp_path / "whole" / "report" / "report.html").read_text().count("data:image/png") == 2
    assert main(["report", folder, "--cells", "layer0:3"]) == 2
    assert "Decoder has no cells to draw" in capsys.readouterr().err
    exported = zoo.load(tmp_path / "whole" / "export")
    assert zoo.generate(exported, "1 green", 20) == zoo.generate(zoo.load(folder), "1 green", 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Classification()}, "RecurrentLM is no classifier of whole examples"),
        (
            {"task": Classification(), "model": ModelConfig("lstm_classifier")},
            r"task Classification needs label of every example; bottles\.txt has characters, targets, tokens, weight",
        ),
        ({"model": ModelConfig("resnet8")}, "resnet8 takes numbers, such as images; the data are tokens of a text"),
        ({"model": ModelConfig("lstm_classifier")}, "RecurrentClassifier is no language model: it has no init_state"),
        ({"model": ModelConfig("lstm_lm", {"vocab_size": 9})}, "vocab_size=9, but bottles.txt has"),
        ({"model": ModelConfig("nanogpt", {"max_length": 32})}, "data.context 64 is more than the model's max_length"),
        ({"batch_size": 4096}, "fewer than one batch of batch-size 4096 times data.context 64"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(config, tmp_path, changes, message):
    with pytest.raises(zoo.ZooError, match=message):
        train.run(dataclasses.replace(config, workdir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


# The loss.


def test_z_loss_moves_the_gradient_by_that_of_the_squared_log_z_and_no_metric(of_windows):
    """A step of plain gradient descent on micro-batches, against the gradient of the penalty alone."""
    descent = OptimizerConfig("sgd", 1.0, schedule="constant", accumulate=2)
    plain = dataclasses.replace(of_windows, optimizer=descent)
    with_z = dataclasses.replace(plain, task=LanguageModel(z_loss=0.1))
    (a, (seen,), _, (model, dataset, batches)), (b, (seen_z,), _, _) = (steps(c, "jit", n=1) for c in (plain, with_z))
    batch = batches(0)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))

    def penalty(params):
        logits = model.apply({"params": params}, batch["tokens"])
        return 0.1 * jnp.mean(jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) ** 2)

    moved = jax.grad(penalty)(variables["params"])
    assert_close(b.params, jax.tree.map(lambda x, y: x - y, a.params, moved))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 0.01
    assert with_z.task.metrics(seen_z) == plain.task.metrics(seen)
    logits = model.apply(variables, batch["tokens"])
    learned, scored = (loss_of(with_z.task, dataset.inputs, logits, batch, train) for train in (True, False))
    added = (learned.total - learned.sums["loss"]) / learned.count
    assert float(added) == pytest.approx(float(penalty(variables["params"])), rel=1e-3)  # a difference of sums
    assert scored.total == scored.sums["loss"]
    with pytest.raises(zoo.ZooError, match=r"task\.z-loss must be at least 0, not -1"):
        LanguageModel(z_loss=-1.0).check()
