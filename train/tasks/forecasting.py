"""Forecasting: predict the numbers of a series some rows ahead, by squared error."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train.data.source import Dataset
from train.forward import Forward
from train.report import forecasts
from train.tasks.task import Batch, Extra, Loss, Task
from zoo.errors import ZooError
from zoo.run import Run


@dataclasses.dataclass(frozen=True)
class Forecasting(Task):
    """The mean squared error of normalised targets."""

    metric: ClassVar[str] = "nrmse"
    unit: ClassVar[str] = "predictions"
    needs: ClassVar[tuple[str, ...]] = ("values", "targets", "counted")

    def check_model(self, model: type[nn.Module]) -> None:
        if not hasattr(model, "num_targets"):
            raise ZooError(f"{model.__name__} forecasts nothing: it has no field num_targets, as lstm_forecaster has")

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """Squared errors, the mean over targets; sums by target for the error relative to their deviation."""
        args, kwargs = forward.inputs.arguments(batch)
        predictions = forward(*args, train=train, **kwargs).astype(jnp.float32)
        weight = (batch["weight"][:, None] * batch["counted"])[..., None]
        targets = batch["targets"]
        errors = jnp.sum((predictions - targets) ** 2 * weight, axis=(0, 1))
        total = jnp.mean(errors)
        of_targets = {
            "sum": jnp.sum(targets * weight, axis=(0, 1)),
            "squares": jnp.sum(targets**2 * weight, axis=(0, 1)),
        }
        return Loss(total, jnp.sum(weight), {"loss": total, "errors": errors, **of_targets})

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The mean squared error of normalised targets, and `nrmse`: the root mean squared error of each target over
        its own standard deviation, the mean over targets (the NDEI of the literature)."""
        errors, first, second = (np.asarray(sums[name]) / sums["count"] for name in ("errors", "sum", "squares"))
        deviation = np.sqrt(np.maximum(second - first**2, 1e-12))
        return {"loss": sums["loss"] / sums["count"], "nrmse": float(np.mean(np.sqrt(errors) / deviation))}

    def score(self, metrics: Mapping[str, float]) -> float:
        return -metrics["nrmse"]

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        return forecasts.draw(run, dataset, options, self.metric)

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        """A picture of held-out predictions, and the command that forecasts a table."""
        split = dataset.test or dataset.validation or dataset.train
        picture = forecasts.draw_predictions(run, split, workdir / "forecast.png")
        return f"the forecast: {workdir}/{picture.name}\nuse it: python -m zoo forecast {workdir} TABLE.csv"
