"""python -m zoo forecast: the next rows of a table."""

from typing import Any

import zoo
from zoo.errors import ZooError


def add(commands: Any) -> None:
    command = commands.add_parser("forecast", help="predict the next rows of a table with a trained forecaster")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("table", metavar="TABLE", help="a CSV or NPZ file with the columns of the training data")
    command.set_defaults(run=lambda args: forecast(args.run_folder, args.table))


def forecast(folder: str, table: str) -> None:
    """Prints the targets of the rows after a table's last one, as many as the model's horizon, as CSV."""
    from zoo.inputs import SeriesInputs

    model, variables, inputs = zoo.load(folder)
    if not isinstance(inputs, SeriesInputs):
        raise ZooError(f"{folder!r} forecasts no series: it takes {inputs.kind}s")
    args, kwargs = inputs.arguments(inputs.batch([table]))
    predictions: Any = model.apply(variables, *args, **kwargs)
    rows = inputs.decode(predictions[0, -inputs.horizon :])
    if len(rows) < inputs.horizon:
        raise ZooError(f"{table!r} has {len(rows)} rows; a forecast needs at least {inputs.horizon}")
    print(",".join(inputs.targets))
    for row in rows:
        print(",".join(f"{value:.6g}" for value in row))
