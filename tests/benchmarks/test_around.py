"""The benchmarks of what a run does outside of its steps, each on something small."""

import importlib.util

import numpy as np
import pytest

from benchmarks import around
from benchmarks.__main__ import main
from train.data.source import ArraySplit
from zoo import ZooError

TINY = {"num_classes": 3, "hidden_size": 8}


def test_checkpoints_saved_and_restored(tmp_path):
    config = around.CheckpointConfig("simple_cnn", TINY, rounds=1, output=str(tmp_path / "x.csv"))
    row = around.run_checkpoint(config)
    assert row["ours_save_mb_per_s"] > 0
    assert row["ours_restore_mb_per_s"] > 0


@pytest.mark.parametrize(
    ("recipe", "workers"),
    [("cnn", (0,)), ("seq2seq", (0,)), pytest.param("cnn", (0, 1), marks=pytest.mark.slow)],  # worker processes
)
def test_batches_of_a_recipe(recipe, workers, tmp_path):
    row = around.run_pipeline(around.PipelineConfig(recipe, workers, 1, str(tmp_path / "x.csv")))
    assert row["ours_batches_per_s"] > 0
    assert row["batch_mb"] > 0
    assert row["data"]
    assert (row["torch_batches_per_s"] != "") == (importlib.util.find_spec("torch") is not None)


def test_different_batches_are_refused(monkeypatch):
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[benchmarks]'")
    from benchmarks.torch_rows import Rows

    split = ArraySplit({"image": np.zeros((5, 2, 2, 1), np.uint8), "label": np.arange(5, dtype=np.int32)})
    assert list(around._loader(around.PipelineConfig(workers=(0,)), split, 2)) == ["torch"]
    row_by_row = lambda rows, indices: {name: array[indices[0]] for name, array in rows.arrays.items()}  # noqa: E731
    monkeypatch.setattr(Rows, "__getitems__", row_by_row)
    with pytest.raises(ZooError, match="not the same batches: ours are"):
        around._loader(around.PipelineConfig(workers=(0,)), split, 2)


@pytest.mark.slow  # processes that import and compile
def test_the_second_run_compiles_less(tmp_path):
    row = around.run_start(around.StartConfig(rounds=1, output=str(tmp_path / "x.csv")))
    assert 0 < row["second_compile_seconds"] < row["first_compile_seconds"] < row["first_seconds"]
    assert 0 < row["import_zoo_seconds"] < row["first_seconds"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["weights", "resnet_50"], "error: unknown model 'resnet_50'"),
        (["pipeline", "cifar100"], "error: unknown recipe 'cifar100'"),
        (["start", "--rounds", "0"], "error: rounds must be at least 1, not 0"),
        (["start", "--recipe", "cn", "--rounds", "1"], "error: unknown recipe 'cn'"),
    ],
)
def test_mistakes_get_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
