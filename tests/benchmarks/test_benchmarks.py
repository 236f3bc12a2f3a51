"""The timer's arithmetic, the rows it leaves, and that a peer that computes something else is refused."""

import csv
import sys
import time

import numpy as np
import pytest

from benchmarks import decoder
from benchmarks.__main__ import main
from benchmarks.timer import Contest, append_row, in_turn, matmul_gflops
from benchmarks.train_step import Step, TrainStepConfig, check_same, run
from zoo import ZooError


def test_contestants_take_turns():
    order = []
    contest = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, least=0.0)
    assert order[:4] == ["a", "a", "b", "b"]  # one call to warm up, one that finds how many make a block
    assert "".join(order[4:]) == "abababab"
    assert {name: len(seconds) for name, seconds in contest.seconds.items()} == {"a": 4, "b": 4}


def test_a_block_lasts_long_enough_and_seconds_are_a_calls():
    calls = []
    contest = in_turn({"sleep": lambda: (calls.append(0), time.sleep(0.01))}, rounds=2, least=0.05)
    block = len(calls) // 4  # 1 to warm up, 1 + 2 + .. + block to calibrate, 2 blocks
    assert len(calls) == 4 * block
    assert block in (1, 2, 4, 8)  # eight sleeps of 0.01 s are enough, fewer where the machine is slow
    assert block * contest.percentiles("sleep")[2] >= 0.04
    assert 0.01 <= contest.percentiles("sleep")[1] < 0.05


def test_percentiles_and_ratios_pair_by_pair():
    contest = Contest({"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 30.0]}, (1.0, 1.0, 1.0), 0.0)
    assert contest.percentiles("a") == tuple(np.percentile([1, 2, 30], [10, 50, 90]))
    assert contest.ratio("a", "b")[1] == 0.5  # the median of 0.5, 0.5, 1: the slow round touched both


def test_the_matrix_product_rate_is_a_rate():
    assert 1 < matmul_gflops(n=256, seconds=0.05) < 1e6


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "results" / "x.csv"
    append_row(path, {"a": 1, "b": 0.123456})
    append_row(path, {"a": 2, "b": "x,y"})
    assert list(csv.DictReader(path.open())) == [{"a": "1", "b": "0.1235"}, {"a": "2", "b": "x,y"}]
    with pytest.raises(ZooError, match="has other columns"):
        append_row(path, {"a": 1, "c": 2})
    assert len(path.read_text().splitlines()) == 3


def test_a_peer_that_computes_something_else_is_refused():
    ours = Step(lambda: 0.0, first_loss=2.3, parameters=10, compile_seconds=0.0)
    check_same(ours, ours._replace(first_loss=2.3 + 1e-4))
    with pytest.raises(ZooError, match=r"the loss at step 0 is 2\.300000, the peer's 2\.301000"):
        check_same(ours, ours._replace(first_loss=2.301))
    with pytest.raises(ZooError, match="loss at step 0 is nan"):
        check_same(ours._replace(first_loss=float("nan")), ours)
    with pytest.raises(ZooError, match="ours has 10 parameters, the peer 11"):
        check_same(ours, ours._replace(parameters=11))


def tiny(tmp_path, peer):
    return TrainStepConfig("resnet8", {"width": 4}, 16, 4, peer=peer, rounds=2, output=str(tmp_path / "x.csv"))


def test_ours_alone(tmp_path):
    row = run(tiny(tmp_path, "none"))
    assert (row["peer"], row["ratio"]) == ("", "")
    assert row["ours_ms"] > 0
    assert next(csv.DictReader((tmp_path / "x.csv").open()))["model"] == "resnet8"


@pytest.mark.parity
def test_ours_beside_torch(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    row = run(tiny(tmp_path, "eager"))
    assert row["peer"] == "torch eager"
    assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]


@pytest.mark.parity
def test_a_gpt_beside_torch(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "batch_size": 2, "length": 8, "vocab_size": 11}
    row = decoder.run(decoder.DecoderStepConfig(**sizes, peers="eager", rounds=2, output=str(tmp_path / "x.csv")))
    assert row["peer"] == "torch eager"
    assert 0 < row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train-stp"], "error: unknown benchmark 'train-stp'; did you mean train-step"),
        (["train-step", "--model", "resnet_8", "--peer", "none"], "error: unknown model 'resnet_8'"),
        (["loop", "--recipe", "cn"], "error: unknown recipe 'cn'; did you mean cnn"),
    ],
)
def test_mistakes_get_one_line_and_status_2(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_missing_package_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["list"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("benchmarks need the extra: pip install '.[benchmarks]'")
