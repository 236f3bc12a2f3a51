"""How near pixels lie to the border between two objects: d1 + d2 of Ronneberger et al. 2015, equation 2."""

import numpy as np

FARTHEST = 255  # pixels; a larger sum is stored as this


def border_distances(mask: np.ndarray, reach: int = 64) -> np.ndarray:
    """The distance to the nearest object plus that to the second nearest, in pixels, rounded: uint8 [H, W].

    Objects are the connected regions (by sides) of classes other than 0, the background, and 255, not counted, in a
    mask [H, W]. Each is looked for within `reach` pixels.
    """
    from scipy import ndimage

    objects, count = ndimage.label((mask > 0) & (mask < 255))
    nearest = np.full((2, *mask.shape), FARTHEST, np.float32)
    for number, box in enumerate(ndimage.find_objects(objects, count), start=1):
        near = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in box)
        distance = ndimage.distance_transform_edt(objects[near] != number).astype(np.float32)
        first, second = nearest[0][near], nearest[1][near]
        nearest[1][near] = np.minimum(second, np.maximum(first, distance))
        nearest[0][near] = np.minimum(first, distance)
    return np.minimum(np.rint(nearest.sum(axis=0)), FARTHEST).astype(np.uint8)
