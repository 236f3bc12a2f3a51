"""The timer, the rows it appends, and the messages for a user's mistakes."""

import csv
import sys
import time

import numpy as np
import pytest

from benchmarks import timer
from benchmarks.__main__ import main
from benchmarks.timer import Contest, append_row, in_turn, matmul_gflops
from zoo import ZooError


def test_contestants_take_turns():
    order = []
    contest = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, least=0.0)
    assert order[:4] == ["a", "a", "b", "b"]  # a warm-up call, and one that finds the size of a block
    assert "".join(order[4:]) == "aabbbbaaaabbbbaa"  # each block's first call is not counted
    assert {name: len(seconds) for name, seconds in contest.seconds.items()} == {"a": 4, "b": 4}


def test_a_block_lasts_long_enough_and_seconds_are_per_call():
    calls = []
    contest = in_turn({"sleep": lambda: (calls.append(0), time.sleep(0.01))}, rounds=2, least=0.05)
    block = (len(calls) - 2) // 4  # 1 to warm up, 1 + 2 + .. + block to calibrate, 2 blocks and a call before each
    assert len(calls) == 4 * block + 2
    assert block in (1, 2, 4, 8)  # eight sleeps of 0.01 s are enough, fewer on a slow machine
    assert block * contest.percentiles("sleep")[2] >= 0.04
    assert 0.01 <= contest.percentiles("sleep")[1] < 0.05


def test_percentiles_and_ratios_by_round():
    contest = Contest({"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 30.0]}, (1.0, 1.0, 1.0), 0.0)
    assert contest.percentiles("a") == tuple(np.percentile([1, 2, 30], [10, 50, 90]))
    assert contest.ratio("a", "b")[1] == 0.5  # the median of 0.5, 0.5, 1: the slow round affects both


def test_the_matrix_product_rate_is_plausible():
    assert 1 < matmul_gflops(n=256, seconds=0.05) < 1e6


def test_a_varying_machine_speed_is_mentioned():
    assert Contest({}, (300.0, 310.0, 350.0), 0.0).remark() == "300, 310, 350 GFLOP/s of matrix product"
    assert "varied by more than a fifth" in Contest({}, (300.0, 310.0, 361.0), 0.0).remark()


def test_large_pages_are_counted_while_it_runs():
    if not timer.ROLLUP.is_file():
        pytest.skip("the system does not report large pages")
    assert timer.large_pages_mb(lambda: time.sleep(0.01)) >= 0


def test_nominal_minutes_are_those_of_a_nominal_machine():
    assert timer.nominal_minutes(60.0, (150.0, 300.0, 600.0)) == 2.0


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "results" / "x.csv"
    append_row(path, {"a": 1, "b": 0.123456})
    append_row(path, {"a": 2, "b": "x,y"})
    assert list(csv.DictReader(path.open())) == [{"a": "1", "b": "0.1235"}, {"a": "2", "b": "x,y"}]
    with pytest.raises(ZooError, match="has other columns"):
        append_row(path, {"a": 1, "c": 2})
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train-stp"], "error: unknown benchmark 'train-stp'; did you mean train-step"),
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
