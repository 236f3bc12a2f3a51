"""The measured parity of public weights: a row for each repository, none of them far from the reference."""

import pytest

import zoo
from benchmarks import parity
from benchmarks.__main__ import main


def test_every_repository_is_measured_and_close():
    measured = {(row["name"], row["repository"]): float(row["difference"]) for row in parity.read()}
    known = {(name, s.repository) for name in zoo.list_models() for s in zoo.model_info(name).sources}
    assert measured.keys() == known
    assert max(measured.values()) < 1e-4


def test_a_model_without_public_weights_gets_one_line(capsys):
    assert main(["parity", "simple_cnn"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown model with public weights 'simple_cnn'")
    assert error.count("\n") == 1


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet18", "pythia_70m"])
def test_a_row_is_measured(name, tmp_path, capsys):
    pytest.importorskip("torch", reason="the references need it")
    (tmp_path / "x.csv").write_text("name,repository,reference,difference\ngpt2,a/b,c,0.5\nresnet18,old/row,c,1.0\n")
    parity.run(parity.ParityConfig((name,), str(tmp_path / "x.csv")))
    rows = parity.read(tmp_path / "x.csv")
    assert {row["name"] for row in rows} == {"gpt2", "resnet18", name}
    assert ("old/row" in {row["repository"] for row in rows}) == (name != "resnet18")
    assert all(float(row["difference"]) < 1e-4 for row in rows if row["name"] == name)
