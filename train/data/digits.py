"""Handwritten digits, 1,797 of 8x8, that scikit-learn carries: real data without a network.

The first 1,437 (80 %) in file order are train, the last 360 test: other people wrote those, so that the test is of
generalising to new hands. A random split flatters by more than a point.
"""

import numpy as np

from train.data.source import ArraySplit
from zoo.inputs.image import fit, open_image


def load(size: tuple[int, int] | None = None) -> tuple[str, dict[str, ArraySplit], list[str]]:
    """Name, splits `train` and `test`, labels. Pixels 0 to 16 become 0 to 255; images are scaled to `size` if given."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    if size is not None:
        images = np.stack([fit(open_image(image, 1), size) for image in images])
    labels = digits.target.astype(np.int32)
    train, test = ({"image": images[part], "label": labels[part]} for part in (slice(None, -360), slice(-360, None)))
    return "digits", {"train": ArraySplit(train), "test": ArraySplit(test)}, [str(digit) for digit in range(10)]
