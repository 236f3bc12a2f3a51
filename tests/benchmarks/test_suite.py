"""README and the tables of the docs quote the results; cases, comparisons and pictures use the same rows."""

import csv
import json
import re
import shutil

import jax
import pytest
from PIL import Image

from benchmarks import campaign, cases, compare, quality, suite, table
from benchmarks.__main__ import main
from benchmarks.timer import RESULTS, append_row
from zoo import ZooError

README = (RESULTS.parents[1] / "README.md").read_text()


def test_the_picture_shows_the_results():
    shown = json.loads(Image.open(table.PICTURE).text["Description"])
    assert shown == table.drawn(), "run: python -m benchmarks docs"


def ratio(what, kind, peer):
    flags = next(flags for label, flags, _ in cases.STEPS if label.replace("`", "") == what.replace("`", ""))
    return f"{table.measured(kind, flags)[peer]['ratio']:.2f}"


def test_the_ratios_in_readme_are_those_of_the_results():
    pattern = r"^\| (CNN|LSTM|Seq2Seq|Transformer) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([^|]+) \|$"
    limits = {}
    for family, label, step, forward, limit in re.findall(pattern, README, re.MULTILINE):
        assert step == ratio(label, "train-step", "torch")
        assert forward == ratio(label, "forward", "torch")
        limits[family] = limit
    assert ratio("resnet20, batch 128", "train-step", "torch") in limits["CNN"]
    assert ratio("lstm_lm 2x512, batch 50, in bfloat16", "train-step", "torch") in limits["LSTM"]
    assert ratio("lstm_lm 1x128, batch 50, length 50", "train-step", "torch") in limits["LSTM"]
    same = "multi30k-gru's model without dropout, batch 64, length 24"
    assert ratio(same, "train-step", "flax") in limits["Seq2Seq"]
    beam = table.newest(cases.Case("translating --recipe multi30k-transformer", {"beams": "5"}))
    sentences = "{ours_sentences_per_s:.0f} sentences/s, PyTorch {torch_sentences_per_s:.0f}"
    assert sentences.format(**beam) in limits["Transformer"]


def test_the_results_in_readme_are_those_of_their_rows():
    shown = dict(re.findall(r"\| `([a-z0-9-]+)`: ([^|]+) \|$", README, re.MULTILINE))
    assert [*shown] == ["cnn", "lstm-sentiment", "multi30k-gru", "shakespeare-gpt"]
    for recipe, text in shown.items():
        result = table.quality(recipe, table.quality_rows(recipe))
        assert text.startswith(result.split(";")[0]), recipe


def test_times_of_files_in_readme_are_those_of_the_results():
    """README: saving takes 2 to 3 times as long, restoring 10 to 21; loading weights takes 5 to 25 times reading."""
    checkpoints = compare.read(RESULTS / "checkpoint.csv").values()
    weights = compare.read(RESULTS / "weights.csv").values()
    for rows, ours, theirs, low, high in (
        (checkpoints, "ours_save_mb_per_s", "torch_save_mb_per_s", 2, 3),
        (checkpoints, "ours_restore_mb_per_s", "torch_restore_mb_per_s", 10, 21),
        (weights, "ours_mb_per_s", "read_mb_per_s", 5, 25),
    ):
        times = [float(row[theirs]) / float(row[ours]) for row in rows]
        assert (round(min(times)), round(max(times))) == (low, high)


def test_every_case_is_a_command_that_parses():
    for name in suite.benchmarks():
        for command in cases.of(name):
            path, settings, _ = table.settings(command)
            assert path.parent == RESULTS
            assert settings


def test_the_newest_row_of_the_same_settings(tmp_path, monkeypatch, capsys):
    output = str(tmp_path / "x.csv")
    row = {"recipe": "cnn", "steps": 300, "ratio": 0.5, "gflops": 1.0, "machine": "m"}
    row |= dict.fromkeys(("python", "jax", "flax", "torch"), "")
    for changed in ({}, {"ratio": 0.75}, {"recipe": "mnist", "ratio": 9.0}, {"steps": 9, "ratio": 8.0}):
        append_row(tmp_path / "x.csv", {**row, **changed})
    case = cases.Case(f"loop --recipe cnn --rounds 3 --output {output}")
    assert table.newest(case)["ratio"] == 0.75
    assert table.newest(case._replace(where={"steps": "9"}))["ratio"] == 8
    assert table.newest(cases.Case(f"loop --recipe lstm --output {output}")) is None
    append_row(tmp_path / "x.csv", {**row, "ratio": "", "gflops": 2.0})
    assert table.newest(case)["ratio"] == ""
    assert table.newest(case, ["ratio"])["ratio"] == 0.75  # the newest with the quoted columns
    monkeypatch.setattr(table, "LONGEST", len(case.command))
    steps = ("a step", "simple_cnn --batch-size 77", True)
    lstm = f"loop --recipe lstm --rounds 3 --output {output}"
    none = cases.line("none", "{0[ratio]:.2f}", lstm)
    empty = cases.line("empty", "{0[ratio]:.2f}, {0[steps]:.0f}", case._replace(where={"gflops": "2"}))
    for name, value in (
        ("STEPS", [steps]),
        ("LINES", [cases.line("a ratio", "{0[ratio]:.2f}", case), none, empty]),
        ("TPUS", ()),
    ):
        monkeypatch.setattr(cases, name, value)
    monkeypatch.setattr(cases, "QUALITY", {})
    table.draw(table.DocsConfig(str(tmp_path / "ratios.png")))
    assert [line.rstrip("| ") for line in table.steps().lines[2:]] == [
        "| a step | step | not measured",
        "| a step | forward | not measured",
    ]
    assert table.figures().lines[2:] == [
        f"| a ratio | 0.75 | `{case.command}` |",
        "| none | not measured | (1) |",
        f"| empty | -, 300 | `{case.command}` |",
        "",
        f"1. `{lstm}`",
    ]
    assert table.places() == ["- m, 1 to 2 GFLOP/s of float32 matrix product; Python -, JAX -, Flax -"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "not measured: python -m benchmarks train-step simple_cnn --batch-size 77",
        "not measured: python -m benchmarks forward simple_cnn --batch-size 77",
        f"not measured: python -m benchmarks {lstm}",
    ]


def test_a_row_of_enough_rounds_is_quoted(tmp_path):
    row = {"recipe": "cnn", "steps": 300}
    for ratio, rounds in ((0.5, 10), (0.9, 2)):
        append_row(tmp_path / "x.csv", {**row, "ratio": ratio, "rounds": rounds})
    command = f"loop --recipe cnn --output {tmp_path / 'x.csv'}"
    assert table.newest(cases.Case(command))["ratio"] == 0.5
    assert table.newest(cases.Case(command + " --rounds 2"))["ratio"] == 0.9


def test_a_row_of_a_quiet_machine_and_a_run_with_more_peers_are_quoted(tmp_path):
    row = {"model": "simple_cnn", "framework": "flaxzoo", "rounds": 20}
    for date, ms, others, peers in (("d1", 5, 0.0, ["torch"]), ("d2", 6, 0.05, []), ("d3", 7, 0.9, ["torch", "flax"])):
        for framework in ("flaxzoo", *peers):
            run = {"busy_others": others, "date": date, "command": "c"}
            append_row(tmp_path / "x.csv", {**row, "framework": framework, "ms": ms, **run})
    flags = f"simple_cnn --output {tmp_path / 'x.csv'}"
    found = table.measured("train-step", flags)
    assert {name: found[name]["date"] for name in found} == {"flaxzoo": "d1", "torch": "d1"}
    rows = compare.read(tmp_path / "x.csv")
    assert [row["date"] for row in rows.values()] == ["d2", "d1", "d3"]  # flax was never measured on a quiet machine


def test_run_lists_the_cases(capsys):
    assert main(["run", "loop", "decodin?", "--dry"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0) == "6 commands"
    assert lines == [f"python -m benchmarks {command}" for name in ("loop", "decoding") for command in cases.of(name)]
    assert len(lines) == 6


@pytest.mark.slow
def test_a_case_that_fails_is_named_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(cases, "LINES", [cases.line("", "", "loop --recipe cn", "loop --recipe cnm")])
    with pytest.raises(ZooError, match="2 failed: loop --recipe cn; loop --recipe cnm"):
        campaign.run(campaign.RunConfig(("loop",)))


@pytest.mark.slow
def test_quality_from_seed_to_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = "import dataclasses\nfrom train.recipes.cnn import config as whole\n\n\ndef config():\n"
    recipe += "    return dataclasses.replace(whole(), steps=70, eval_every=10)\n"
    (tmp_path / "short.py").write_text(recipe)
    (row,) = quality.run(quality.QualityConfig("short.py", seed=3, output=str(tmp_path / "x.csv")))
    with (tmp_path / "x.csv").open() as file:
        (read,) = csv.DictReader(file)
    assert read["recipe"] == "short.py"
    assert read["seed"] == "3"
    assert 0.3 < row["last_accuracy"] < 1
    assert row["accuracy"] > row["last_accuracy"] - 0.05  # the best weights on validation
    assert row["nominal_minutes"] > 0


def results(path, ratios, machine="m"):
    for (cell, size), ratio in ratios.items():
        row = {"cell": cell, "hidden_size": size, "parameters": 5, "ratio": ratio, "ratio_p10": ratio - 0.1}
        row |= {"ratio_p90": ratio + 0.1, "gflops": 100.0, "machine": machine, "jax": "0", "date": "", "command": "x"}
        append_row(path, row)
    return str(path)


def test_two_files_are_compared_case_by_case(tmp_path, capsys):
    a = results(tmp_path / "a.csv", {("lstm", 8): 1.0, ("lstm", 4): 1.0, ("gru", 4): 2.0})
    b = results(tmp_path / "b.csv", {("gru", 4): 1.0, ("lstm", 8): 1.1, ("rnn", 4): 1.0})
    assert compare.run(compare.CompareConfig(a, b)) == {"ratio": pytest.approx(0.8)}  # the median of 0.5 and 1.1
    lines = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert lines == [
        "cell lstm, hidden size 8",
        "ratio 1 1.1 x 1.100 within the spread",
        "cell gru, hidden size 4",
        "ratio 2 1 x 0.500",
        "second over first, median over 2 cases:",
        "ratio x 0.800 (0.500 to 1.100)",
        f"only in {a}: cell lstm, hidden_size 4",
        f"only in {b}: cell rnn, hidden_size 4",
    ]


@pytest.mark.parametrize("name", ["sampling", "decoding", "step"])
def test_a_picture_beside_the_file(name, tmp_path):
    shutil.copy(RESULTS / f"{name}.csv", tmp_path)
    picture = compare.plot(compare.PlotConfig(str(tmp_path / f"{name}.csv")))
    assert picture == tmp_path / f"{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_file_of_results_has_cases_and_results():
    distinguishing = {  # the columns that distinguish the cases of a file
        "compile": ("num_layers", "scan_layers"), "decoding": ("batch_size",), "loop": ("recipe",),
        "memory": ("attention", "length"), "quality": ("recipe", "framework", "seed"), "savings": ("way",),
        "sampling": ("num_layers", "hidden_size"), "shakespeare": ("framework", "recipe", "steps", "flags"),
        "tpu": ("recipe", "framework", "topology", "mesh"),
    }  # fmt: skip
    for path in RESULTS.glob("*.csv"):
        rows = compare.read(path)
        if path.stem in distinguishing:
            with path.open() as file:
                every = {tuple(row[name] for name in distinguishing[path.stem]) for row in csv.DictReader(file)}
            assert len(rows) == len(every), path
        assert compare.labels(rows)
        converted = [row for row in rows.values() if row.get("converts", "yes") == "yes"]  # else a reason
        assert converted
        assert all(compare.measured(row) for row in converted)
        assert all("--output" not in row["command"] for row in rows.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "quality"], "error: unknown benchmark with cases 'quality'; there are"),
        (["run"], "error: unknown benchmark with cases ''; there are"),
        (["compare", "a.csv", "b.csv"], "error: [Errno 2] No such file or directory: 'a.csv'"),
        (["plot", "pyproject.toml"], "error: 'pyproject.toml' is not a file of results"),
        (["quality", "list"], "error: unknown recipe 'list'; did you mean lstm"),
        (["plot", "x.png"], "error: 'x.png' is not a file of results"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x00\xff")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)


def test_the_rate_of_the_peer_is_a_result():
    row = next(iter(compare.read(RESULTS / "decoding.csv").values()))
    assert "peer_tokens_per_s" in compare.measured(row)
    assert not {"rounds", "seed", "parameters", "torch"} & {*compare.measured(row)}


def test_compilation_is_timed_without_the_cache(monkeypatch):
    before = jax.config.jax_enable_compilation_cache
    for args, cached in ((["train-step", "simple_cn"], False), (["quality", "simple_cn"], True)):
        jax.config.update("jax_enable_compilation_cache", True)
        assert main(args) == 2
        assert jax.config.jax_enable_compilation_cache == cached
    jax.config.update("jax_enable_compilation_cache", before)
