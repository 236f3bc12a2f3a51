"""A step and a forward pass of each family beside its peers, on tiny models: agreement, and the rows."""

import csv
import functools
import os
import sys

import numpy as np
import pytest

from benchmarks import compare, contestants, step_peers, steps, timer
from benchmarks.__main__ import main
from benchmarks.problems import make_problem
from benchmarks.timer import in_turn
from zoo import ZooError

TINY = {"hidden_size": 8, "num_layers": 1}
PIECES = {**TINY, "num_heads": 2, "mlp_size": 16, "vocab_size": 11, "dropout_rate": 0.0}
ATTENTIVE = {"hidden_size": 8, "embedding_size": 8, "attention_size": 8, "maxout_size": 4, "source_vocab_size": 13}
LLAMA = {**TINY, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 16, "vocab_size": 16, "max_length": 8}
CNN = {"widths": (4, 8), "hidden_size": 8, "num_classes": 3}
CASES = {  # the model, its fields, the size, and the peers that have it
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


TORCHES = ("torch", "transformers")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    for module in (steps, timer):
        monkeypatch.setattr(module, "in_turn", functools.partial(in_turn, least=0.0))
    monkeypatch.setattr(timer, "matmul_gflops", lambda: 1.0)
    monkeypatch.setattr(timer, "cores", lambda: 1)  # other tests use the rest


def measured(tmp_path, config, case, peers, **fields):
    name, args, size, _ = CASES[case]
    output = str(tmp_path / ("x.csv" if config is steps.TrainStepConfig else "forward.csv"))
    return steps.run(config(name, args, 2, size, peers, rounds=1, output=output, **fields))


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
    assert [row["compile_seconds"] is None for row in rows] == [row["framework"] in TORCHES for row in rows]


@pytest.mark.parity
@pytest.mark.parametrize("case", ["CNN", "LSTM", "GPT"])
def test_peers_compute_in_bfloat16_as_ours(case, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="the peers need torch: pip install '.[benchmarks]'")
    monkeypatch.setitem(CASES, case, (CASES[case][0], {**CASES[case][1], "dtype": "bfloat16"}, *CASES[case][2:]))
    asked = []
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *args: asked.append(args) or autocast(*args))
    rows = measured(tmp_path, steps.TrainStepConfig, case, ("torch", "flax", "keras"))
    # oneDNN computes LSTM layers in bfloat16 only where the processor has AVX-512.
    lacking = case == "LSTM" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert [row["framework"] for row in rows] == ["flaxzoo", *([] if lacking else ["torch"]), "flax"]
    assert set(asked) == {("cpu", torch.bfloat16)}
    why = "Keras is timed only in float32" if case == "CNN" else "the only Keras peer is simple_cnn"
    printed = capsys.readouterr().out
    assert f"keras is left out: {why}" in printed
    assert ("torch is left out: PyTorch has no bfloat16 kernel" in printed) == lacking


def test_half_precision_parameters_have_no_peer(tmp_path, monkeypatch, capsys):
    fields = {**CNN, "dtype": "bfloat16", "param_dtype": "bfloat16"}
    monkeypatch.setitem(CASES, "CNN", ("simple_cnn", fields, 8, ()))
    assert len(measured(tmp_path, steps.TrainStepConfig, "CNN", ("flax",))) == 1
    assert "flax is left out: peers need float32 parameters" in capsys.readouterr().out


@pytest.mark.parity
def test_keras_beside_ours(tmp_path):
    pytest.importorskip("keras", reason="the peer needs Keras: pip install '.[benchmarks]'")
    for config in (steps.TrainStepConfig, steps.ForwardConfig):
        rows = measured(tmp_path, config, "CNN", ("keras",))
        assert [row["framework"] for row in rows] == ["flaxzoo", "keras"]


@pytest.mark.slow  # compiles C++
@pytest.mark.parity
@pytest.mark.parametrize("case", ["CNN", "LSTM"])
def test_compiled_beside_ours(case, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # or it would not compile again
    rows = measured(tmp_path, steps.TrainStepConfig, case, ("torch compile",))
    assert [row["framework"] for row in rows] == ["flaxzoo", "torch compile"]
    assert rows[1]["compile_seconds"] > 1


def test_rows_of_a_step_and_of_a_forward_pass(tmp_path):
    rows = measured(tmp_path, steps.TrainStepConfig, "CNN", ("flax",), optimizer="sgd")
    assert [(row["framework"], row["optimizer"], row["flops"] != "") for row in rows] == [
        ("flaxzoo", "sgd", True), ("flax", "sgd", False),
    ]  # fmt: skip
    with (tmp_path / "x.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [*rows[0]] == [*rows[1]]
    assert (read[0]["args"], read[0]["size"], read[0]["ratio"]) == (
        "widths=(4, 8) hidden_size=8 num_classes=3",
        "8",
        "",
    )
    assert read[0]["hugetlb"] in ("True", "False")
    assert float(read[0]["large_pages_mb"] or 0) >= 0
    assert len(compare.read(tmp_path / "x.csv")) == 2
    assert compare.plot(compare.PlotConfig(str(tmp_path / "x.csv"))).is_file()
    forward = measured(tmp_path, steps.ForwardConfig, "CNN", ())[0]
    assert [name for name in rows[0] if name not in ("optimizer", "learning_rate")] == [*forward]


def test_a_step_is_three_times_the_forward_pass(tmp_path):
    forward, step = (measured(tmp_path, kind, "CNN", ())[0] for kind in (steps.ForwardConfig, steps.TrainStepConfig))
    assert 2 * forward["flops"] < step["flops"] <= 3 * forward["flops"]


def test_a_peer_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    ours = contestants.Contestant(lambda: 0.0, (2.3, 2.2), 10, 0.0)
    steps.check_same(ours, ours._replace(losses=(2.3 + 1e-4, 2.2 + 1e-3)), "torch")
    with pytest.raises(ZooError, match=r"the loss at step 0 is 2\.300000, torch's 2\.301000"):
        steps.check_same(ours, ours._replace(losses=(2.301, 2.2)), "torch")
    with pytest.raises(ZooError, match=r"the loss after an update is 2\.200000, torch's 2\.210000"):
        steps.check_same(ours, ours._replace(losses=(2.3, 2.21)), "torch")
    steps.check_same(ours, ours._replace(losses=(2.301, 2.21)), "torch", "bfloat16")
    with pytest.raises(ZooError, match="loss at step 0 is nan"):
        steps.check_same(ours._replace(losses=(float("nan"), 2.2)), ours, "torch")
    with pytest.raises(ZooError, match="ours has 10 parameters, torch's 11"):
        steps.check_same(ours, ours._replace(parameters=11), "torch")

    problem = make_problem("simple_cnn", CNN, 2, 8, 0)
    ours, _ = steps.our_contestant(problem, contestants.Update("adam", 1e-3), 0)
    (slower,) = step_peers.flax(problem, contestants.Update("adam", 5e-4))
    with pytest.raises(ZooError, match="not the same computation: the loss after an update"):
        steps.check_same(ours, slower, "flax")

    carried = step_peers.carried

    def perturbed(*args):
        params = carried(*args)["params"]
        return {"params": {**params, "fc2": {name: 1.1 * leaf for name, leaf in params["fc2"].items()}}}

    monkeypatch.setattr(step_peers, "carried", perturbed)
    for kind in (steps.ForwardConfig, steps.TrainStepConfig):
        with pytest.raises(ZooError, match="not the same computation"):
            measured(tmp_path, kind, "CNN", ("flax",))
    assert not list(tmp_path.iterdir())


def test_a_missing_peer_is_left_out_with_a_message(tmp_path, monkeypatch, capsys):
    for name in ("torch", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")  # and removed again
    rows = measured(tmp_path, steps.ForwardConfig, "CNN", tuple(step_peers.PEERS))
    assert [row["framework"] for row in rows] == ["flaxzoo", "flax"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert [line.split(" is left out: ")[0] for line in lines] == ["torch", "torch compile", "transformers", "keras"]
    assert "import of torch halted" in lines[0]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ModuleNotFoundError("a bug", name="benchmarks.no")])
def test_a_broken_peer_is_not_a_missing_one(error, tmp_path, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setitem(step_peers.PEERS, "flax", broken)
    with pytest.raises(type(error), match="a bug"):
        measured(tmp_path, steps.ForwardConfig, "CNN", ("flax",))


@pytest.mark.slow  # the first use of torch.compile
@pytest.mark.parity
def test_without_a_compiler_torch_compile_is_left_out(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere"))
    assert len(measured(tmp_path, steps.ForwardConfig, "CNN", ("torch compile",))) == 1
    assert "torch compile is left out: InvalidCxxCompiler: No working C++ compiler" in capsys.readouterr().out


def test_torch_runs_where_jax_does(monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    assert timer.torch_device() == "cpu"
    assert timer.torch_or_none() is torch
    monkeypatch.setattr(timer.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ZooError, match="JAX runs on a GPU, for which this PyTorch is not built"):
        timer.torch_device()
    assert timer.torch_or_none() is None
    assert "torch is left out: JAX runs on a GPU" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    assert timer.torch_device() == "cuda"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


def test_padding_does_not_count():
    problem = make_problem(*CASES["attentive GRU"][:2], 3, 6, 0)
    present = np.arange(6) < problem.batch["length"][:, None]
    assert ((problem.targets >= 0) == present).all()
    assert (problem.targets[present] == problem.batch["target"][present]).all()
    logits = np.random.default_rng(0).normal(size=(3, 6, 11))
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log[i, j, problem.batch["target"][i, j]] for i, j in zip(*present.nonzero(), strict=True)])
    assert contestants.mean_loss(logits, problem.targets) == pytest.approx(expected)
    assert contestants.mean_loss(2.5, problem.targets) == 2.5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train-step", "resnet_8"], "error: unknown model 'resnet_8'"),
        (["train-step", "simple_cnn", "--peers", "tourch"], "error: unknown peer 'tourch'; did you mean torch"),
        (
            ["train-step", "efficientnet_b0", "--size", "32", "--args", "dropout_rate=0.1"],
            "error: steps are timed without dropout, but efficientnet_b0 has it; give --args dropout_rate=0.0",
        ),
        (["forward", "lstm_classifier"], "error: lstm_classifier cannot be timed: it is no image classifier"),
        (["forward", "--batch-size", "0"], "error: batch-size must be at least 1, not 0"),
        (["forward", "--size", "0"], "error: size must be at least 1, not 0"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
