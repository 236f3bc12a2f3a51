"""The benchmarks of Transformers and of sampling on tiny models, and their rows."""

import csv
import functools
import importlib
import sys

import jax
import numpy as np
import pytest

import zoo
from benchmarks import compiling, decoding, sampling, shakespeare, step_peers
from benchmarks.__main__ import main
from zoo import ZooError
from zoo.inputs.text import TextInputs

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 32, "vocab_size": 64}


def decoding_config(tmp_path, **fields):
    args = {**TINY, "max_length": 32}
    output = str(tmp_path / "x.csv")
    return decoding.DecodingConfig(args=args, batch_size=2, prompt=3, length=9, rounds=2, output=output, **fields)


@pytest.mark.slow
def test_decoding_alone(tmp_path):
    row = decoding.run(decoding_config(tmp_path, peer=False))
    assert row["peer"] == ""
    assert np.isnan(row["speedup"])
    assert 0 < row["ours_p10"] <= row["ours_tokens_per_s"] <= row["ours_p90"]
    assert row["bfloat16_tokens_per_s"] > 0
    assert row["weights_gb_per_s"] == pytest.approx(4e-9 * row["parameters"] * row["ours_tokens_per_s"] / 2)
    assert next(csv.DictReader((tmp_path / "x.csv").open()))["batch_size"] == "2"


@pytest.mark.parity
def test_decoding_beside_transformers(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch and transformers: pip install '.[benchmarks]'")
    importlib.import_module("benchmarks.peers").torchvision_models()
    pytest.importorskip("transformers")
    row = decoding.run(decoding_config(tmp_path))
    assert row["peer"].startswith("transformers, ")
    assert 0 < row["speedup_p10"] <= row["speedup"] <= row["speedup_p90"]


@pytest.mark.parity
def test_a_model_that_transformers_does_not_have(tmp_path, capsys):
    pytest.importorskip("torch", reason="the peer needs torch and transformers: pip install '.[benchmarks]'")
    fields = {"hidden_size": 8, "num_layers": 1, "vocab_size": 11}
    output = str(tmp_path / "x.csv")
    row = decoding.run(decoding.DecodingConfig("lstm_lm", fields, 2, 3, 5, rounds=1, output=output))
    assert row["peer"] == ""
    assert "transformers is left out: " in capsys.readouterr().out


@pytest.mark.parametrize("peer", [False, pytest.param(True, marks=pytest.mark.parity)])
def test_sampling_beside_torch_and_without(peer, tmp_path, monkeypatch):
    if peer:
        pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    sizes = {"num_layers": 1, "hidden_size": 8, "vocab_size": 11, "length": 5, "rounds": 1}
    row = sampling.run(sampling.SamplingConfig("gru", **sizes, output=str(tmp_path / "x.csv")))
    assert row["ours_tokens_per_s"] > 0
    assert (row["torch_tokens_per_s"] > 0) == (row["speedup"] > 0) == peer
    sampling.check_logits(np.ones(3), np.ones(3) + 1e-6)
    with pytest.raises(ZooError, match="logits differ from PyTorch's"):
        sampling.check_logits(np.ones(3), np.ones(3) + 0.1)


@pytest.mark.parity
def test_a_peer_that_generates_other_tokens_is_refused(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch and transformers: pip install '.[benchmarks]'")
    importlib.import_module("benchmarks.peers").torchvision_models()
    pytest.importorskip("transformers")
    config = decoding_config(tmp_path)
    model, variables, prompts = decoding.prepared(config)
    generated = decoding.our_decoding(config, model, variables, prompts)()
    with pytest.raises(ZooError, match="transformers generates"):
        decoding.peer_decoding(config, model, variables, prompts, (generated + 1) % 64)


@pytest.mark.slow
def test_compile_seconds_by_depth(tmp_path):
    sizes = {"hidden_size": 8, "num_heads": 2, "batch_size": 2, "length": 8, "vocab_size": 11}
    rows = compiling.run(compiling.CompileConfig((1, 2), **sizes, output=str(tmp_path / "x.csv")))
    assert [(row["num_layers"], row["scan_layers"]) for row in rows] == [(1, False), (1, True), (2, False), (2, True)]
    assert all(row["trace_seconds"] > 0 and row["compile_seconds"] > 0 for row in rows)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


def test_memory_in_blocks_is_linear_in_the_context(tmp_path):
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "batch_size": 1, "vocab_size": 11}
    rows = compiling.run_memory(compiling.MemoryConfig((2048, 512), **sizes, output=str(tmp_path / "x.csv")))
    assert [(row["attention"], row["length"]) for row in rows] == [
        ("xla", 512),
        ("xla", 2048),
        ("blocked", 512),
        ("blocked", 2048),
    ]
    growth = [row["growth"] for row in rows]
    assert growth[0] == growth[2] == 1
    assert growth[3] < 5 < 12 < growth[1]


RECIPE = """
from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData

def config():
    model = ModelConfig("nanogpt_4x128", {{"hidden_size": 8, "num_layers": 1, "num_heads": 2}})
    data, log = TextData(path={path!r}, context=8), LogConfig(tensorboard=False)
    parts = {{"model": model, "data": data, "task": LanguageModel(), "optimizer": OptimizerConfig(), "log": log}}
    return Config("", 2, 2, parallel="jit", **parts)
"""


@pytest.mark.slow  # a process that imports and compiles
def test_a_recipe_trained_in_its_own_process(tmp_path):
    text = "the quick brown fox jumps over the lazy dog\n" * 9
    (tmp_path / "text").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "text" / f"{split}.txt").write_text(text)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(path=str(tmp_path / "text")))
    output = str(tmp_path / "x.csv")
    config = shakespeare.ShakespeareConfig(str(recipe), (3,), "--batch-size 4", peer=False, output=output)
    (row,) = shakespeare.run(config)
    assert (row["framework"], row["steps"], row["seconds_of_peer"]) == ("flaxzoo", 3, "")
    assert 0 <= row["train_seconds"] < row["seconds"]
    assert row["training_flops"] > 0
    assert 2 < row["loss"] < 4
    assert next(csv.DictReader((tmp_path / "x.csv").open()))["flags"] == "--batch-size 4"


@functools.cache
def tiny_gpt():
    fields = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    model = zoo.create_model("nanogpt", max_length=64, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    variables = jax.tree.map(lambda leaf: 8 * leaf, variables)
    tokens = np.random.default_rng(0).integers(0, 11, 64 * 140 + 30).astype(np.uint16)
    return zoo.Run(model, variables, TextInputs("char", "abcdefghijk", 64)), tokens


def test_loss_covers_all_full_windows():
    run, tokens = tiny_gpt()
    windows = np.stack([tokens[i : i + 65] for i in range(0, 64 * 140, 64)]).astype(np.int32)
    logits = run.model.apply(run.variables, windows[:, :-1])
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), windows[:, 1:, None], axis=-1)
    assert shakespeare.loss_of(run, tokens) == pytest.approx(-expected.mean(), rel=1e-5)


@pytest.mark.parity
def test_both_measure_the_same_loss():
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    run, tokens = tiny_gpt()
    peer = step_peers.torch_gpt(run.model, run.variables)
    theirs = importlib.import_module("benchmarks.shakespeare_torch").loss_of(peer, torch.from_numpy(tokens.astype(int)))
    assert shakespeare.loss_of(run, tokens) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parity
def test_the_peers_learning_rate_is_nanogpts():
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    rate = importlib.import_module("benchmarks.shakespeare_torch").learning_rate
    assert rate(0, 2000) == pytest.approx(1e-3 / 101)
    assert rate(100, 2000) == pytest.approx(1e-3)
    assert rate(1050, 2000) == pytest.approx(5.5e-4)
    assert rate(2000, 2000) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["decoding", "--length", "0"], "error: length must be at least 1, not 0"),
        (["decoding", "--seed", "-1"], "error: seed must be at least 0, not -1"),
        (["sampling", "--seed", "-1"], "error: seed must be at least 0, not -1"),
        (["compile", "--depths", "12", "0"], "error: depths must be at least 1, not 0"),
        (["shakespeare", "--steps", "9", "0"], "error: steps must be at least 1, not 0"),
        (["shakespeare", "--recipe", "cnn"], "error: cnn must train on a text with validation and test splits; digits"),
        (["memory", "--batch-size", "0"], "error: batch-size must be at least 1, not 0"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
