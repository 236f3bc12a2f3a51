"""A step and a forward pass of each family beside its peers, on tiny models: what is the same, what the rows say."""

import csv
import functools
import os
import sys

import numpy as np
import pytest

from benchmarks import compare, contestants, step_peers, steps, timer
from benchmarks.__main__ import main
from benchmarks.problems import make_problem
from zoo import ZooError

TINY = {"hidden_size": 8, "num_layers": 1}
PIECES = {**TINY, "num_heads": 2, "mlp_size": 16, "vocab_size": 11, "dropout_rate": 0.0}
ATTENTIVE = {"hidden_size": 8, "embedding_size": 8, "attention_size": 8, "maxout_size": 4, "source_vocab_size": 13}
LLAMA = {**TINY, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 16, "vocab_size": 16, "max_length": 8}
CNN = {"widths": (4, 8), "hidden_size": 8, "num_classes": 3}
CASES = {  # the model, its fields, the size, and which peers have one such
    "CNN": ("simple_cnn", CNN, 8, ("torch", "flax")),
    "padded shortcuts": ("resnet8", {"width": 4}, 16, ("torch", "flax")),
    "bottlenecks": ("resnet50", {"stage_sizes": (1, 1), "width": 4, "num_classes": 3}, 32, ("torch", "flax")),
    "LSTM": ("lstm_lm", {**TINY, "vocab_size": 11}, 5, ("torch", "flax")),
    "GRU": ("gru_lm", {**TINY, "vocab_size": 11}, 5, ("torch", "flax")),
    "GPT": ("nanogpt", {**TINY, "num_heads": 2, "max_length": 8}, 8, ("torch", "flax")),
    "Llama": ("smollm2_135m", LLAMA, 8, ("transformers",)),
    "attentive GRU": ("seq2seq_gru_attention", {**ATTENTIVE, "vocab_size": 11}, 6, ("torch", "flax")),
    "Transformer": ("transformer_base", PIECES, 6, ("torch", "flax")),
    "norms first": ("transformer_base", {**PIECES, "norm_first": True, "source_vocab_size": 13}, 6, ("torch", "flax")),
}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(steps, "in_turn", functools.partial(timer.in_turn, least=0.0))
    monkeypatch.setattr(timer, "matmul_gflops", lambda: 1.0)
    monkeypatch.setattr(step_peers, "cores", lambda: 1)  # other tests have the rest


def measured(tmp_path, config, case, peers, **fields):
    name, args, size, _ = CASES[case]
    return steps.run(config(name, args, 2, size, peers, rounds=1, output=str(tmp_path / "x.csv"), **fields))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("config", "case"),
    [
        *((steps.TrainStepConfig, case) for case in CASES),
        *((steps.ForwardConfig, case) for case in ("CNN", "LSTM", "GPT", "attentive GRU", "Transformer")),
    ],
)
def test_each_family_beside_its_peers(config, case, tmp_path):
    pytest.importorskip("torch", reason="the peers need torch: pip install '.[benchmarks]'")
    peers = CASES[case][3]
    if "transformers" in peers:
        pytest.importorskip("transformers")
    rows = measured(tmp_path, config, case, ("torch", "transformers", "flax"))
    assert [row["framework"] for row in rows] == ["flaxzoo", *peers]
    assert len({row["parameters"] for row in rows}) == 1
    for row in rows[1:]:
        assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
        assert row["ratio"] == pytest.approx(rows[0]["ms"] / row["ms"])
    assert rows[0]["flops"] > 0
    assert rows[0]["temporary_mb"] > 0


@pytest.mark.parity
def test_keras_beside_ours(tmp_path):
    pytest.importorskip("keras", reason="the peer needs Keras: pip install '.[benchmarks]'")
    for config in (steps.TrainStepConfig, steps.ForwardConfig):
        rows = measured(tmp_path, config, "CNN", ("keras",))
        assert [row["framework"] for row in rows] == ["flaxzoo", "keras"]


@pytest.mark.slow  # it compiles C++
@pytest.mark.parity
@pytest.mark.parametrize("case", ["CNN", "LSTM"])
def test_compiled_beside_ours(case, tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    rows = measured(tmp_path, steps.TrainStepConfig, case, ("torch compile",))
    assert [row["framework"] for row in rows] == ["flaxzoo", "torch compile"]
    assert rows[1]["compile_seconds"] > 1


def test_steps_and_forward_passes_have_one_format(tmp_path):
    trained = measured(tmp_path, steps.TrainStepConfig, "CNN", ("flax",), optimizer="sgd")
    rows = trained + measured(tmp_path, steps.ForwardConfig, "CNN", ("flax",))
    assert [(row["framework"], row["optimizer"]) for row in rows] == [
        ("flaxzoo", "sgd"), ("flax", "sgd"), ("flaxzoo", ""), ("flax", ""),
    ]  # fmt: skip
    with (tmp_path / "x.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [*rows[0]] == [*rows[-1]]
    assert (read[0]["args"], read[0]["size"], read[0]["ratio"]) == (
        "widths=(4, 8) hidden_size=8 num_classes=3",
        "8",
        "",
    )
    assert len(compare.read(tmp_path / "x.csv")) == 4
    assert compare.plot(compare.PlotConfig(str(tmp_path / "x.csv"))).is_file()


def test_a_step_is_three_times_the_forward_pass(tmp_path):
    forward, step = (measured(tmp_path, kind, "CNN", ())[0] for kind in (steps.ForwardConfig, steps.TrainStepConfig))
    assert 2 * forward["flops"] < step["flops"] <= 3 * forward["flops"]


def test_a_peer_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    ours = contestants.Contestant(lambda: 0.0, 2.3, 10, 0.0)
    steps.check_same(ours, ours._replace(loss=2.3 + 1e-4), "torch")
    with pytest.raises(ZooError, match=r"the loss at step 0 is 2\.300000, torch's 2\.301000"):
        steps.check_same(ours, ours._replace(loss=2.301), "torch")
    steps.check_same(ours, ours._replace(loss=2.301), "torch", "bfloat16")
    with pytest.raises(ZooError, match="loss at step 0 is nan"):
        steps.check_same(ours._replace(loss=float("nan")), ours, "torch")
    with pytest.raises(ZooError, match="ours has 10 parameters, torch's 11"):
        steps.check_same(ours, ours._replace(parameters=11), "torch")

    carried = step_peers.carried

    def perturbed(*args):
        params = carried(*args)["params"]
        return {"params": {**params, "fc2": {name: 1.1 * leaf for name, leaf in params["fc2"].items()}}}

    monkeypatch.setattr(step_peers, "carried", perturbed)
    for kind in (steps.ForwardConfig, steps.TrainStepConfig):
        with pytest.raises(ZooError, match="not the same arithmetic"):
            measured(tmp_path, kind, "CNN", ("flax",))
    assert not (tmp_path / "x.csv").exists()


def test_a_missing_peer_is_left_out_and_said_so(tmp_path, monkeypatch, capsys):
    for name in ("torch", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")  # and taken out again
    rows = measured(tmp_path, steps.ForwardConfig, "CNN", tuple(step_peers.PEERS))
    assert [row["framework"] for row in rows] == ["flaxzoo", "flax"]
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert [line.split(" is left out: ")[0] for line in said] == ["torch", "torch compile", "transformers", "keras"]
    assert "import of torch halted" in said[0]


def test_targets_of_padding_count_nothing():
    problem = make_problem(*CASES["attentive GRU"][:2], 3, 6, 0)
    told = np.arange(6) < problem.batch["length"][:, None]
    assert ((problem.targets >= 0) == told).all()
    assert (problem.targets[told] == problem.batch["target"][told]).all()
    logits = np.random.default_rng(0).normal(size=(3, 6, 11))
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log[i, j, problem.batch["target"][i, j]] for i, j in zip(*told.nonzero(), strict=True)])
    assert contestants.mean_loss(logits, problem.targets) == pytest.approx(expected)
    assert contestants.mean_loss(2.5, problem.targets) == 2.5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train-step", "resnet_8"], "error: unknown model 'resnet_8'"),
        (["train-step", "simple_cnn", "--peers", "tourch"], "error: unknown peer 'tourch'; did you mean torch"),
        (["forward", "lstm_classifier"], "error: lstm_classifier is no classifier of images, language model or"),
        (["forward", "--batch-size", "0"], "error: batch-size must be at least 1, not 0"),
        (["forward", "--size", "0"], "error: size must be at least 1, not 0"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
