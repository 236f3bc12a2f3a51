"""The benchmark of loading weights, on something small."""

import csv
import importlib.util

import pytest

from benchmarks import weights

TINY = {"num_classes": 3, "hidden_size": 8}


def test_weights_beside_reading_the_file(tmp_path):
    row = weights.run(weights.WeightsConfig("simple_cnn", TINY, rounds=2, output=str(tmp_path / "x.csv")))
    sizes = (3 * 9 * 32 + 32, 32 * 9 * 64 + 64, 64 * 64 * 8 + 8, 8 * 3 + 3)
    assert row["weights_mb"] == pytest.approx(4 * sum(sizes) / 1e6)
    assert 0 < row["ours_p10"] <= row["ours_mb_per_s"] <= row["ours_p90"]
    assert row["read_mb_per_s"] > 0
    assert row["ours_peak"] > 0
    assert row["library_mb_per_s"] == ""  # neither timm nor transformers has it
    assert next(csv.DictReader((tmp_path / "x.csv").open()))["args"] == "num_classes=3 hidden_size=8"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_weights_beside_transformers(tmp_path):
    small = {"vocab_size": 50, "hidden_size": 16, "num_layers": 1, "mlp_size": 8, "num_heads": 2}
    row = weights.run(weights.WeightsConfig("bert_base", small, rounds=1, output=str(tmp_path / "x.csv")))
    assert min(row[f"{name}_mb_per_s"] for name in weights.CONTESTANTS) > 0
