"""Each of the Transformer's benchmarks on a tiny model: what its rows say."""

import csv
import importlib

import numpy as np
import pytest

from benchmarks import compiling, decoding
from benchmarks.__main__ import main
from zoo import ZooError

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_size": 32, "vocab_size": 64}


def decoding_config(tmp_path, **fields):
    args = {**TINY, "max_length": 32}
    output = str(tmp_path / "x.csv")
    return decoding.DecodingConfig(args=args, batch_size=2, prompt=3, length=9, rounds=2, output=output, **fields)


def test_decoding_alone(tmp_path):
    row = decoding.run(decoding_config(tmp_path, peer=False))
    assert row["peer"] == ""
    assert np.isnan(row["speedup"])
    assert 0 < row["ours_p10"] <= row["ours_tokens_per_s"] <= row["ours_p90"]
    assert row["bfloat16_tokens_per_s"] > 0
    assert row["weights_gb_per_s"] == pytest.approx(4e-9 * row["parameters"] * row["ours_tokens_per_s"] / 2)
    assert next(csv.DictReader((tmp_path / "x.csv").open()))["batch_size"] == "2"


@pytest.mark.parity
def test_decoding_beside_transformers(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch and transformers: pip install '.[benchmarks]'")
    importlib.import_module("benchmarks.peers").torchvision_models()
    pytest.importorskip("transformers")
    row = decoding.run(decoding_config(tmp_path))
    assert row["peer"].startswith("transformers, ")
    assert 0 < row["speedup_p10"] <= row["speedup"] <= row["speedup_p90"]


@pytest.mark.parity
def test_a_peer_that_says_other_tokens_is_refused(tmp_path):
    pytest.importorskip("torch", reason="the peer needs torch and transformers: pip install '.[benchmarks]'")
    importlib.import_module("benchmarks.peers").torchvision_models()
    pytest.importorskip("transformers")
    config = decoding_config(tmp_path)
    model, variables, prompts = decoding.prepared(config)
    said = decoding.our_decoding(config, model, variables, prompts)()
    with pytest.raises(ZooError, match="transformers says"):
        decoding.peer_decoding(config, model, variables, prompts, (said + 1) % 64)


def test_compile_seconds_by_depth(tmp_path):
    sizes = {"hidden_size": 8, "num_heads": 2, "batch_size": 2, "length": 8, "vocab_size": 11}
    rows = compiling.run(compiling.CompileConfig((1, 2), **sizes, output=str(tmp_path / "x.csv")))
    assert [(row["num_layers"], row["scan_layers"]) for row in rows] == [(1, False), (1, True), (2, False), (2, True)]
    assert all(row["trace_seconds"] > 0 and row["compile_seconds"] > 0 for row in rows)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


def test_memory_in_blocks_is_linear_in_the_context(tmp_path):
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "batch_size": 1, "vocab_size": 11}
    rows = compiling.run_memory(compiling.MemoryConfig((2048, 512), **sizes, output=str(tmp_path / "x.csv")))
    assert [(row["attention"], row["length"]) for row in rows] == [
        ("xla", 512),
        ("xla", 2048),
        ("blocked", 512),
        ("blocked", 2048),
    ]
    growth = [row["growth"] for row in rows]
    assert growth[0] == growth[2] == 1
    assert growth[3] < 5 < 12 < growth[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["decoding", "--length", "0"], "error: length must be at least 1, not 0"),
        (["compile", "--depths", "12", "0"], "error: depths must be at least 1, not 0"),
        (["memory", "--batch-size", "0"], "error: batch-size must be at least 1, not 0"),
    ],
)
def test_sizes_out_of_range(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(message)
