"""Translation: the loss and its padding, the quality of decoded texts, and a run from data to command line."""

import dataclasses
import functools
import io
import json
import random

import flax.linen as nn
import jax
import numpy as np
import pytest

import train
import zoo
from runs import fingerprint
from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairData, Translation
from train.__main__ import main
from train.forward import Forward
from train.interrupt import Stop
from train.loop import Trainer
from train.report.alignments import draw_attention
from train.setup import make_model
from train.tasks.task import Extra
from train.timing import Phases
from zoo.__main__ import main as zoo_main
from zoo.decode import translate
from zoo.inputs.pairs import PairInputs, learn_pairs
from zoo.inputs.text import TextInputs

SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_size": 64, "norm_first": True, "dropout_rate": 0.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Copying: different words of two to six letters out of four."""
    rng = random.Random(0)
    words = dict.fromkeys("".join(rng.choice("abcd") for _ in range(rng.randint(2, 6))) for _ in range(2500))
    path = tmp_path_factory.mktemp("pairs") / "copies.tsv"
    path.write_text("".join(f"{word}\t{word}\n" for word in words))
    return Config(
        "", 400, 64, eval_every=200, model=ModelConfig("transformer_base", SIZES), data=PairData(path=str(path)),
        task=Translation(label_smoothing=0.0, beam_size=2),
        optimizer=OptimizerConfig("adamw", 1e-2, warmup_steps=20, clip_norm=1.0), log=LogConfig(100, tensorboard=False),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(config, tmp_path_factory):
    """The finished run, and its result."""
    workdir = tmp_path_factory.mktemp("runs") / "copies"
    return workdir, train.run(dataclasses.replace(config, workdir=str(workdir)))


def test_a_tiny_model_learns_to_copy_every_held_out_word(run_folder):
    workdir, result = run_folder
    assert result["validation"]["exact_match"] == 1.0
    assert result["validation"]["error_rate"] == 0.0
    assert result == {**json.loads((workdir / "result.json").read_text())}
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert (workdir / "attention.png").stat().st_size > 1000


def test_translate_from_python_gives_the_best_in_the_order_of_the_sources(run_folder):
    run = zoo.load(run_folder[0])
    texts = ["abcd", "da", "aabbcd", "cc"] * 20
    found = translate(run, texts, beam_size=3, num_best=2, batch_size=7)
    assert [best.text for best, _ in found] == texts
    assert all(first.score >= second.score for first, second in found)
    alone = translate(run, ["da"], beam_size=3, num_best=2)[0]
    assert alone[0].score == pytest.approx(found[1][0].score, abs=1e-4)


def test_translate_on_the_command_line(run_folder, monkeypatch, capsys):
    workdir = str(run_folder[0])
    assert zoo_main(["translate", workdir, "abcd", "dad"]) == 0
    assert capsys.readouterr().out == "abcd\ndad\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("abba\ncd\n"))
    assert zoo_main(["translate", workdir, "--num-best", "2", "--beam-size", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in lines][::2] == ["abba", "cd"]
    assert float(lines[0][0]) > float(lines[1][0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["abcdabcdabcd"], "the source has 13 tokens, more than the model's limit of 7"),
        (["ab", " "], "at least one character"),
        (["ab", "--beam-size", "0"], "beam_size must be at least 1, not 0"),
        (["ab", "--num-best", "9"], "num_best 9 is more than beam_size 5"),
    ],
)
def test_translate_refuses_wrong_sources_and_options(args, message, run_folder, capsys):
    assert zoo_main(["translate", str(run_folder[0]), *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


class Bytes:
    """Standard input as bytes."""

    def __init__(self, content):
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize("num_best", [1, 2])
def test_every_line_of_standard_input_has_its_line_of_output(num_best, run_folder, monkeypatch, capsys):
    """Empty, too long and not UTF-8 among the first and the second batch of lines; the last without a line end."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcd", k=4)) for _ in range(130)]
    lines = [word.encode() for word in words]
    for place, wrong in {1: b"", 2: b"  \t", 70: b"abcd" * 9, 71: b"ab\xff", 100: b"a\rb", 129: b""}.items():
        lines[place] = wrong
    monkeypatch.setattr("sys.stdin", Bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\nabcd"))
    options = ["--beam-size", "2", "--num-best", str(num_best)]
    assert zoo_main(["translate", str(run_folder[0]), *options]) == 0
    out, err = capsys.readouterr()
    found = [line.split("\t")[-1] for line in out.split("\n")[:-1]][::num_best]
    assert out.count("\n") == 131 * num_best
    assert [i for i, line in enumerate(found) if not line] == [1, 2, 70, 129]
    right = [found[i] == word for i, word in enumerate([*words, "abcd"]) if i not in (1, 2, 70, 71, 100, 129)]
    assert np.mean(right) > 0.9
    warned = err.splitlines()
    assert [line.split(":")[1].split()[1] for line in warned] == ["2", "3", "71", "72", "130"]
    assert "warning: line 71 of standard input: the source has 37 tokens, more than the model's limit of 7" in warned[2]
    assert "warning: line 72 of standard input is not UTF-8; its bytes become U+FFFD" in warned[3]


def test_a_target_of_several_lines_is_printed_in_one(run_folder, monkeypatch, capsys):
    monkeypatch.setattr("zoo.inputs.pairs.PairInputs.decode", lambda *_: "a\nb\r\nc")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd\n"))
    assert zoo_main(["translate", str(run_folder[0]), "--beam-size", "1"]) == 0
    assert capsys.readouterr().out == "a b c\n" * 2


def test_lines_of_standard_input_do_not_hide_a_wrong_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd\n"))
    assert zoo_main(["translate", "lenet5"]) == 2
    assert "cannot translate: it is not an encoder-decoder" in capsys.readouterr().err


def test_a_run_of_pairs_only_translates_and_others_do_not(run_folder, capsys):
    for command in (["predict", str(run_folder[0]), "a"], ["generate", str(run_folder[0])]):
        assert zoo_main(command) == 2
        err = capsys.readouterr().err
        assert "an encoder-decoder (python -m zoo translate" in err or "it is not a language model" in err
    assert zoo_main(["translate", "lenet5", "a"]) == 2
    assert "cannot translate: it is not an encoder-decoder" in capsys.readouterr().err


def test_evaluate_and_report_of_a_run(run_folder, capsys):
    workdir = str(run_folder[0])
    assert main(["evaluate", workdir, "--split", "validation", "--task.beam-size", "1"]) == 0
    assert "exact_match 1.0000" in capsys.readouterr().out
    assert main(["report", workdir, "--split", "validation"]) == 0
    page = (run_folder[0] / "report" / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert "exact_match 1.0000" in page
    assert "(BLEU: nrefs:1|case:mixed|eff:no|tok:13a|" in page
    assert main(["report", workdir]) == 0  # no test split: validation again


def test_tokens_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    """Two dollar signs would begin and end one of Matplotlib's, a wrong one of which is an error."""
    texts = [("$x_$ $$", "$\\frac$ $$")]
    inputs = learn_pairs(texts, ("word", "word"), 300, (9, 9), shared=True, lowercase=False)
    model = zoo.create_model("transformer_base", **SIZES, max_length=9, **inputs.model_args())
    args, kwargs = inputs.arguments({**inputs.batch([texts[0][0]]), "target": np.zeros((1, 9), np.int32)})
    variables = jax.jit(model.init)(jax.random.key(0), *args, **kwargs)
    drawn = draw_attention(zoo.Run(model, variables, inputs), texts, [texts[0][1]], tmp_path / "a.png")
    assert drawn.stat().st_size > 1000


def test_resume_is_bit_exact(config, tmp_path, monkeypatch):
    optimizer = OptimizerConfig("adamw", 1e-2, decay_steps=8)
    short = dataclasses.replace(
        config, steps=8, eval_every=4, keep=3, optimizer=optimizer, log=LogConfig(4, tensorboard=False)
    )
    train.run(dataclasses.replace(short, workdir=str(tmp_path / "whole")))
    train.run(dataclasses.replace(short, workdir=str(tmp_path / "parts"), steps=4))

    def learn(*_):
        raise AssertionError("a resumed run keeps its vocabulary")

    monkeypatch.setattr("train.data.pairs.learn_pairs", learn)
    train.run(dataclasses.replace(short, workdir=str(tmp_path / "parts"), resume=True))
    whole, parts = fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "parts")
    assert whole[0][8] == parts[0][8]
    assert whole[1:] == parts[1:]


def test_each_width_is_compiled_in_its_phase(config, tmp_path, capsys):
    """Words of three and of twelve letters, a batch of one kind each: two widths in one run."""
    words = ["".join(random.Random(i).choices("abcd", k=3 if i % 2 else 12)) for i in range(512)]
    (tmp_path / "words.tsv").write_text("".join(f"{word}\t{word}\n" for word in words))
    data, compilations, phases = PairData(path=str(tmp_path / "words.tsv")), [], Phases()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(phases.current) if "backend_compile" in name else None
    )
    changed = dataclasses.replace(config, workdir=str(tmp_path / "run"), data=data)
    dataset = data.load(zoo.model_info(config.model.name).input_shape)
    with Stop() as stop, Trainer(changed, tmp_path / "run", dataset, phases) as trainer:
        del compilations[:]
        trainer.train(stop, until=6)
    assert (compilations, capsys.readouterr().out.count("compiled the step in ")) == (["compile"] * 2, 2)


# The task.


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    length, source_length = np.array([5, 2, 3], np.int32), np.array([4, 6, 1], np.int32)
    target = np.where(np.arange(5) < length[:, None], rng.integers(4, 8, (3, 5)), 0).astype(np.int32)
    source = np.where(np.arange(6) < source_length[:, None], rng.integers(4, 8, (3, 6)), 0).astype(np.int32)
    arrays = {"source": source, "source_length": source_length, "target": target, "length": length}
    return {**arrays, "weight": np.array([1, 1, 0], np.float32)}


def test_padding_changes_no_loss(config):
    dataset = config.data.load(())
    _, model = make_model(config, dataset)
    forward = Forward(model, dataset.inputs, initial(model))
    for train_mode in (False, True):
        losses = {}
        for padding in (0, 1):
            wide = {k: np.pad(v, ((0, 0), (0, padding))) if v.ndim == 2 else v for k, v in batch().items()}
            losses[padding] = Translation().loss(forward, wide, Extra(), jax.random.key(0), train_mode)
        for name, value in losses[0].sums.items():
            np.testing.assert_allclose(losses[1].sums[name], value, rtol=1e-5)
        np.testing.assert_allclose(losses[1].total, losses[0].total, rtol=1e-5)
        assert losses[1].count == losses[0].count == 7


class Constant(nn.Module):
    """Gives the same logits whatever it reads."""

    def __call__(self, tokens, source, source_lengths, train=False):
        return np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)


def test_sums_are_those_of_a_plain_loop():
    inputs = PairInputs(TextInputs("char", "abcd", 6), TextInputs("char", "abcd", 5))
    forward = Forward(Constant(), inputs, {"params": {}})
    data, logits = batch(), Constant()(None, None, None)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits), np.float64)
    loss, smooth, right = 0.0, 0.0, 0
    for row in range(2):  # the third has weight 0
        for place in range(data["length"][row]):
            token = data["target"][row, place]
            loss -= log_probabilities[row, place, token]
            smooth -= 0.8 * log_probabilities[row, place, token] + 0.2 * log_probabilities[row, place].mean()
            right += logits[row, place].argmax() == token
    task = Translation(label_smoothing=0.2)
    evaluated, trained = (task.loss(forward, data, Extra(), jax.random.key(0), mode) for mode in (False, True))
    found = [evaluated.total, evaluated.sums["loss"], evaluated.sums["accuracy"], evaluated.count]
    np.testing.assert_allclose(found, [loss, loss, right, 7], rtol=1e-6)
    np.testing.assert_allclose([trained.total, trained.count], [smooth, 7], rtol=1e-6)


def initial(model):
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))


def test_scheduled_sampling_mixes_in_predictions_by_a_rising_share(config):
    dataset = config.data.load(())
    _, model = make_model(config, dataset)
    inputs, task = dataset.inputs, Translation(sampling_rate=1.0, sampling_steps=10)
    variables = initial(model)
    many = {name: np.resize(array, (300, *array.shape[1:])) for name, array in batch().items()}
    many["row"] = np.arange(300, dtype=np.int32)
    (own,), kwargs = inputs.arguments(many)
    predicted = np.argmax(model.apply(variables, own, **kwargs), axis=-1)

    @jax.jit
    def mixed(step):
        return task.sampled(Forward(model, inputs, variables, step), many, jax.random.key(1))["before"]

    np.testing.assert_array_equal(mixed(0), own)
    for step in (10, 99):
        np.testing.assert_array_equal(mixed(step)[:, 1:], predicted[:, :-1])
        assert set(mixed(step)[:, 0].tolist()) == {inputs.first}
    differs = (predicted[:, :-1] != own[:, 1:])[many["length"] > 0]
    taken = np.asarray(mixed(3) != own)[:, 1:][differs]
    assert abs(taken.mean() - 0.3) < 4 * (0.21 / taken.size) ** 0.5


def test_a_run_with_scheduled_sampling_reads_the_sampled_tokens(config, tmp_path):
    losses = {}
    for rate in (0.0, 1.0):
        folder = tmp_path / str(rate)
        task = dataclasses.replace(config.task, sampling_rate=rate, sampling_steps=1)
        log = LogConfig(1, tensorboard=False)
        train.run(dataclasses.replace(config, workdir=str(folder), steps=2, eval_every=2, task=task, log=log,
                  optimizer=OptimizerConfig("sgd", 1e-2)))  # fmt: skip
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[rate] = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[0.0][0] == losses[1.0][0]  # at step 0 the share is zero
    assert losses[0.0][1] != losses[1.0][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Translation(label_smoothing=1.0)}, r"task.label-smoothing must be in \[0, 1\)"),
        ({"task": Translation(beam_size=0)}, "task.beam-size must be at least 1"),
        ({"task": Translation(sampling_rate=1.5)}, r"task.sampling-rate must be in \[0, 1\], not 1.5"),
        ({"task": Translation(bleu_tokenizer="13b")}, "unknown task.bleu-tokenizer '13b'; did you mean 13a"),
        ({"task": Translation(sampling_steps=0)}, "task.sampling-steps must be at least 1"),
        ({"data": PairData(target_path="x")}, "data.target-path goes with a data.path"),
        ({"data": PairData(source_length=1)}, "data.source-length must be at least 2, not 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, config):
    with pytest.raises(zoo.ZooError, match=message):
        dataclasses.replace(config, **changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig("nanogpt")}, "is no encoder-decoder: it has no encode"),
        ({"model": ModelConfig("lenet5")}, "takes numbers, such as images"),
        ({"model": ModelConfig("t5_small")}, "t5_small has one vocabulary for both sides: set data.shared-vocabulary"),
        ({"task": train.LanguageModel()}, "EncoderDecoder is no language model: it has no init_state"),
        ({"data": train.TextData()}, "task Translation needs source and target of every example; the standard library"),
    ],
)
def test_models_tasks_and_data_that_do_not_go_together_are_refused(changes, message, config, tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\n" * 100)
    config = dataclasses.replace(config, data=PairData(path=str(tmp_path / "pairs.tsv")), workdir=str(tmp_path / "run"))
    with pytest.raises(zoo.ZooError, match=message):
        train.run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_a_language_model_refuses_pairs(config):
    with pytest.raises(zoo.ZooError, match="task LanguageModel needs tokens and targets and characters of every exam"):
        train.LanguageModel().check_data(config.data.load(()))
