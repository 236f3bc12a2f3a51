"""Forecasters are causal and of the size that arithmetic gives; series inputs go to a model and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.inputs import SeriesInputs, inputs_from_json
from zoo.inputs.series import read_series

INPUTS = SeriesInputs(("a", "b"), ("b",), (1.0, -2.0), (2.0, 0.5), horizon=3, length=16)


def test_parameter_counts_by_arithmetic():
    lstm = 64 * 4 * (1 + 64) + 64 * 4 + 64 + 1
    gru = 64 * 3 * (1 + 64) + 64 * 3 + 64 + 64 + 1  # the candidate has a bias of its own
    assert [zoo.model_info(name).parameters for name in ("lstm_forecaster", "gru_forecaster")] == [lstm, gru]


@pytest.mark.parametrize("name", ["lstm_forecaster", "gru_forecaster"])
def test_a_prediction_follows_from_the_rows_up_to_its_own(name):
    model = zoo.create_model(name, hidden_size=8, num_layers=2, num_targets=2)
    x = jax.random.normal(jax.random.key(0), (2, 10, 3))
    variables = model.init(jax.random.key(1), x)
    whole, changed = (model.apply(variables, x) for x in (x, x.at[:, 6:].add(1.0)))
    assert whole.shape == (2, 10, 2)
    np.testing.assert_array_equal(whole[:, :6], changed[:, :6])
    assert float(jnp.abs(whole[:, 6:] - changed[:, 6:]).min(axis=(0, 2)).max()) > 0


def test_series_are_normalised_by_column_and_forecasts_are_in_the_units_of_their_column():
    array = np.array([[1.0, -2.0], [3.0, -1.5]])
    np.testing.assert_allclose(INPUTS.encode(array), [[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(INPUTS.decode(np.array([[0.0], [1.0]])), [[-2.0], [-1.5]])
    assert inputs_from_json(INPUTS.to_json()) == INPUTS
    assert INPUTS.model_args() == {"num_targets": 1}


def test_a_table_may_have_a_mark_and_notes_of_any_length_and_several_lines(tmp_path):
    note = '"two\r\nlines\u2028' + "x" * 140_000 + '"'
    (tmp_path / "t.csv").write_bytes(f"\ufeffb,note,a\r\n-2,{note},1\r\n-1.5,,3\r\n".encode())
    names, values = read_series(tmp_path / "t.csv")
    assert names == ["b", "a"]
    np.testing.assert_array_equal(values, [[-2, 1], [-1.5, 3]])


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text("day,b,a\nMonday,-2,1\nTuesday,-1.5,3\n")
    np.testing.assert_allclose(INPUTS.encode(tmp_path / "t.csv"), [[0.0, 0.0], [1.0, 1.0]])
    (tmp_path / "t.csv").write_text("b,c\n1,2\n")
    with pytest.raises(zoo.ZooError, match="has no column 'a'; it has b, c"):
        INPUTS.encode(tmp_path / "t.csv")
    with pytest.raises(zoo.ZooError, match=r"finite numbers \[rows, 2\], not \[3, 1\]"):
        INPUTS.encode(np.ones((3, 1)))


@pytest.mark.parametrize(
    "wrong",
    [{"targets": ["c"]}, {"std": [0.0, 1.0]}, {"mean": [1.0]}, {"horizon": 0}, {"columns": "ab"}, {"mean": ["x", 1.0]}],
)
def test_wrong_series_inputs_are_refused(wrong):
    with pytest.raises(zoo.ZooError):
        inputs_from_json({**INPUTS.to_json(), **wrong})
