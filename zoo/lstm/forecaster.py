"""`lstm_forecaster`, `gru_forecaster`: numbers to come, from recurrent layers over a series.

At each step a dense layer reads the last layer's state and predicts the targets a fixed number of steps later
(Gers et al. 2001, "Applying LSTM to time series predictable through time-window approaches", without its time window).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.lstm.layers import Recurrent
from zoo.ops.recurrence import Cell
from zoo.registry import register
from zoo.sequence import check_series

_register = functools.partial(register, family="lstm", input_shape=(64, 1), paper="Gers et al. 2001")


@_register("lstm_forecaster")
class RecurrentForecaster(nn.Module):
    """Series [B, T, C] to predictions [B, T, num_targets], each from the steps up to its own.

    Features: layers/..., as `Recurrent` lists them.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    num_targets: int = 1
    cell: Cell = "lstm"
    hidden_size: int = 64
    num_layers: int = 1
    dropout_rate: float = 0.0  # between layers
    dtype: Any = jnp.float32  # of the arithmetic
    param_dtype: Any = jnp.float32  # of the parameters

    head = "head"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_series(self, x)
        layers = Recurrent(
            cell=self.cell,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layers",
        )
        outputs = layers(x, train=train)
        return nn.Dense(self.num_targets, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(outputs)


gru_forecaster = _register("gru_forecaster")(functools.partial(RecurrentForecaster, cell="gru"))
