"""The rows of the benchmark `savings`, on a tiny model."""

import csv

import jax
import pytest

from benchmarks import savings


@pytest.mark.slow
def test_a_row_for_each_way_beside_the_plain_step(tmp_path, monkeypatch):
    assert jax.device_count() == savings.DEVICES
    names = ("plain", "not donated", "accumulate=4", "fsdp=8", "fsdp=4,context=2")
    monkeypatch.setattr(savings, "WAYS", {name: savings.WAYS[name] for name in names})
    output = tmp_path / "x.csv"
    config = savings.SavingsConfig(64, 1, 2, 32, 32, 2048, str(output))
    rows = {row["way"]: row for row in savings.run(config)}
    assert [row["way"] for row in csv.DictReader(output.open())] == list(names)
    plain = rows["plain"]
    assert plain["peak_share"] == 1.0
    assert rows["not donated"]["peak_mb"] > plain["peak_mb"]
    assert rows["accumulate=4"]["temporary_mb"] < plain["temporary_mb"] / 2
    assert rows["accumulate=4"]["step_gflop"] == pytest.approx(plain["step_gflop"])
    assert rows["fsdp=8"]["step_gflop"] == pytest.approx(plain["step_gflop"])
    table = 3 * 2048 * 64 * 4 / 1e6  # the only large array, and Adam's two averages of it
    assert plain["state_mb"] - rows["fsdp=8"]["state_mb"] == pytest.approx(table * 7 / 8)
    assert plain["state_mb"] - rows["fsdp=4,context=2"]["state_mb"] == pytest.approx(table * 3 / 4)
