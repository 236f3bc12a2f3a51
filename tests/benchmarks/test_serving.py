"""The load of a server: what is counted, and the table of what was measured."""

import csv
import time

import pytest

from benchmarks import serving
from benchmarks.__main__ import main


def test_two_servers_of_a_model_are_loaded_in_turn(tmp_path, capfd):
    output = tmp_path / "serving.csv"
    flags = ["--clients", "2", "--requests", "3", "--rounds", "1", "--batch", "4", "--output", str(output)]
    assert main(["serving", "lenet5", *flags]) == 0
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["clients"], row["unit"], row["batch"]) == ("lenet5", "2", "images", "4")
    assert float(row["ratio"]) == pytest.approx(float(row["ours_per_s"]) / float(row["other_per_s"]), rel=0.01)
    assert 0 < float(row["ours_first_p50_ms"]) <= float(row["ours_first_p99_ms"])
    assert row["ours_between_p50_ms"] == ""
    assert "lenet5, 2 clients: ours" in capfd.readouterr().out
    line = serving.table(output).splitlines()[-1]
    assert line.startswith("| `lenet5` | 2 | ")
    assert line.count("|") == serving.table(output).splitlines()[0].count("|")


def test_tokens_and_waits_of_a_stream_are_counted(monkeypatch):
    def streamed(session, body):
        begun = time.perf_counter()
        return [begun + 1, begun + 1.5, begun + 2.5], 7

    monkeypatch.setattr(serving, "_streamed", streamed)
    bodies = [serving.chat_bodies(8)(i) for i in range(6)]
    assert len({body["messages"][0]["content"] for body in bodies}) == 6
    found = serving.load("http://nowhere", 2, bodies, images=False)
    assert found.total == 42
    assert found.first == pytest.approx([1.0] * 6, abs=0.1)
    assert found.between == pytest.approx([0.5, 1.0] * 6)


def test_wrong_settings_are_refused(capsys):
    assert main(["serving", "lenet5", "--clients", "0"]) == 2
    assert "--clients must be numbers of at least 1" in capsys.readouterr().err
    assert main(["serving", "lenet5", "--rounds", "0"]) == 2
    assert "rounds must be at least 1, not 0" in capsys.readouterr().err


def test_the_kept_results_have_the_figures_that_the_guide_promises():
    rows = [line.split(" | ") for line in serving.table().splitlines()[2:]]
    assert {(row[0].strip("| `"), row[1]) for row in rows} >= {
        *(("SmolLM2-135M-Instruct.Q4_1.gguf", clients) for clients in ("1", "8", "32")),
        ("resnet20", "32"),
    }
