"""Labels matched by name, as a run and the data that it is evaluated on call them."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from zoo.errors import ZooError


def plain(label: str) -> str:
    """A label in Unicode's composed form (NFC), without space around it: names that look the same are the same."""
    return unicodedata.normalize("NFC", label).strip()


def numbers_in(known: Sequence[str], found: Sequence[str], where: str) -> np.ndarray:
    """The number in `known` of each label of `found`, int32; ZooError for labels that `known` does not have."""
    places = {plain(label): number for number, label in enumerate(known)}
    if others := [label for label in found if plain(label) not in places]:
        raise ZooError(
            f"{where} has {len(others)} labels that the model does not have ({', '.join(others[:5])}); "
            f"it has {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
        )
    return np.array([places[plain(label)] for label in found], np.int32)
