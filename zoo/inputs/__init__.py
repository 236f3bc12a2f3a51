"""From what a person has (a file, a string) to what a model was trained on, and back.

Every kind of inputs has `encode(raw)` and `decode(array)` for one example, `batch(raws)` for several as the data sets
give them, `arguments(batch)` for what a model is applied to, and `to_json()`; `inputs_from_json` rebuilds any of them.
"""

from typing import Any

from zoo.errors import ZooError, unknown
from zoo.inputs.image import ImageInputs
from zoo.inputs.pairs import PairInputs
from zoo.inputs.series import SeriesInputs
from zoo.inputs.text import TextInputs

Inputs = ImageInputs | TextInputs | PairInputs | SeriesInputs
_KINDS: dict[str, type[Inputs]] = {"image": ImageInputs, "text": TextInputs, "pair": PairInputs, "series": SeriesInputs}


def inputs_from_json(data: dict[str, Any]) -> Inputs:
    """The inputs that `to_json` described; ZooError where `data` describes none."""
    if not isinstance(data, dict) or "kind" not in data:
        raise ZooError(f"inputs must be an object with a field kind, not {data!r:.80}")
    fields = dict(data)
    kind = fields.pop("kind")
    if str(kind) not in _KINDS:
        raise unknown("kind of inputs", str(kind), _KINDS)
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ZooError(f"inputs of kind {kind} do not fit: {error}") from None
