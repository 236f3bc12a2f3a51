"""The table of models that convert to ONNX covers every architecture, and what it says can be done again."""

import importlib.util

import numpy as np
import pytest

import zoo
from benchmarks import onnx
from zoo.errors import ZooError
from zoo.export.onnx import OPSET, TOLERANCE, convert

ROWS = onnx.read()


def test_every_architecture_has_a_row():
    classes = {zoo.model_info(name).module_class for name in zoo.list_models()}
    classes = {cls for cls in classes if not getattr(cls, "detects", False)}  # whose result is no array
    ours = {cls for cls in classes if cls.__module__.startswith("zoo.")}
    assert {zoo.model_info(name).module_class for name in onnx.MODELS} == ours
    assert ROWS.keys() == onnx.MODELS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_a_small_error_or_a_reason(name):
    row = ROWS[name]
    if row["converts"] != "yes":
        assert "jax2onnx does not convert it" in row["converts"]
        return
    assert row["opset"] == str(OPSET)
    assert row["axes"].split()[0] == "b"
    assert float(row["error"]) <= TOLERANCE
    assert float(row["ours_ms"]) > 0
    assert float(row["onnxruntime_ms"]) > 0


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "nanogpt"])
def test_a_model_converts_as_the_table_says(name):
    if importlib.util.find_spec("jax2onnx") is None:
        pytest.skip("jax2onnx is not installed: it has an environment of its own, pip install '.[onnx]'")
    row = ROWS[name]
    forward, arguments, largest = onnx.forward_of(name, tuple(row["axes"].split()))
    content, error = convert(forward, arguments, largest)
    assert error <= TOLERANCE
    assert len(content) > 1000


def test_without_jax2onnx_the_error_names_the_extra():
    if importlib.util.find_spec("jax2onnx") is not None:
        pytest.skip("jax2onnx is installed")
    forward, arguments, largest = onnx.forward_of("lenet5", ("b",))
    with pytest.raises(ZooError, match=r"No module named 'jax2onnx'.*pip install 'flaxzoo\[onnx\]'"):
        convert(forward, arguments, largest)


def test_a_table_row_reads_well():
    lines = onnx.table().splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert {line.count("|") for line in lines} == {8}
    assert np.all([len(line) < 240 for line in lines])
