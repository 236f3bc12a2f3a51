"""Handwritten digits, 1,797 of 8x8, that scikit-learn carries: real data without a network.

The first 1,437 (80 %) in file order are train, the last 360 test: other people wrote those, so that the test is of
generalising to new hands. A random split flatters by more than a point.
"""

import numpy as np

from train.data.image_source import Found
from train.data.pictures import StoredPictures

LABELS = tuple(map(str, range(10)))


def found() -> Found:
    """The splits `train` and `test`; pixels 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    parts = {"train": slice(None, -360), "test": slice(-360, None)}
    return Found("digits", {name: StoredPictures(images[part], labels[part]) for name, part in parts.items()}, LABELS)
