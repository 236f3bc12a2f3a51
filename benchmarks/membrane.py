"""Segments membranes without a network: a threshold of the smoothed image, and a random forest on filter responses.

Both learn from the training sections, choose their level on the validation sections, and are measured on the six test
sections, beside a run of the recipe `membrane`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances
from train.data.segmentation import SegmentationData
from train.settings import at_least
from train.tasks.segmentation import overlaps, rand_error
from zoo.errors import ZooError
from zoo.segmenter import Segmenter

SCALES = (1.0, 2.0, 4.0, 8.0)  # standard deviations of Gaussians, in pixels
LEVELS = np.linspace(0.02, 0.98, 49)  # that are tried, as quantiles of a method's scores
MEMBRANE = 0  # the class of the ISBI 2012 labels
Method = Literal["threshold", "forest", "network"]


@dataclasses.dataclass(frozen=True)
class MembraneConfig:
    """Segments membranes by a threshold and by a random forest, on the sections of the recipe membrane."""

    methods: Positional[tuple[Method, ...]] = ("threshold", "forest")  # threshold, forest, network
    run: str | None = None  # of network: a finished run of the recipe
    pixels: int = 200_000  # of the training sections, of which the forest learns
    trees: int = 100  # of the forest
    seed: int = 0  # of the forest and its pixels
    output: str = str(RESULTS / "membrane.csv")  # the CSV to append to


def run(config: MembraneConfig) -> list[dict[str, Any]]:
    """Measures, prints and appends a row for each method; returns them."""
    for name in ("pixels", "trees"):
        at_least(name, getattr(config, name), 1)
    at_least("seed", config.seed, 0)
    if ("network" in config.methods) != (config.run is not None):
        raise ZooError("the method network and --run, a run of the recipe membrane, go together")
    dataset, rows = SegmentationData("isbi_membrane").load((256, 256, 1)), []
    methods: dict[str, Any] = {"threshold": threshold, "forest": forest, "network": network}
    for method in config.methods:
        start = time.perf_counter()
        validation, test = methods[method](config, dataset)
        level = best_level(validation, dataset.validation.arrays["mask"])
        row: dict[str, Any] = {
            "method": method,
            "seed": config.seed,
            "pixels": config.pixels,
            "trees": config.trees,
            "level": level,
        }
        row |= measured(test, dataset.test.arrays["mask"], level)
        row |= {"seconds": round(time.perf_counter() - start, 1), **circumstances()}
        append_row(pathlib.Path(config.output), row)
        print(
            f"{method}: membrane IoU {row['membrane_iou']:.4f}, cell IoU {row['cell_iou']:.4f}, pixel error "
            f"{row['pixel_error']:.4f}, Rand error {row['rand_error']:.4f}; {row['seconds']:.0f} s"
        )
        rows.append(row)
    return rows


def threshold(config: MembraneConfig, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The darkness of validation and test sections, float [n, H, W], smoothed at the scale that is best in training."""
    from scipy.ndimage import gaussian_filter

    def smoothed(split: Any, scale: float) -> np.ndarray:
        return 1 - gaussian_filter(split.arrays["image"][..., 0].astype(np.float32), (0, scale, scale)) / 255

    def reached(scale: float) -> float:
        scores, masks = smoothed(dataset.train, scale), dataset.train.arrays["mask"]
        return measured_iou(scores >= best_level(scores, masks), masks)

    scale = max(SCALES, key=reached)
    return smoothed(dataset.validation, scale), smoothed(dataset.test, scale)


def forest(config: MembraneConfig, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of membrane, by a forest that learned from as many pixels of each training section."""
    from sklearn.ensemble import RandomForestClassifier

    rng, images, masks = np.random.default_rng(config.seed), *map(dataset.train.arrays.get, ("image", "mask"))
    each, features, labels = -(-config.pixels // len(images)), [], []
    for image, mask in zip(images, masks, strict=True):
        chosen = rng.choice(mask.size, min(each, mask.size), replace=False)
        features.append(responses(image[..., 0]).reshape(mask.size, -1)[chosen])
        labels.append(mask.ravel()[chosen] == MEMBRANE)
    learner = RandomForestClassifier(config.trees, min_samples_leaf=5, n_jobs=-1, random_state=config.seed)
    learner.fit(np.concatenate(features), np.concatenate(labels))

    def probabilities(split: Any) -> Iterator[np.ndarray]:
        for image in split.arrays["image"]:
            found = responses(image[..., 0])
            yield learner.predict_proba(found.reshape(-1, found.shape[-1]))[:, 1].reshape(found.shape[:2])

    return np.stack([*probabilities(dataset.validation)]), np.stack([*probabilities(dataset.test)])


def responses(image: np.ndarray) -> np.ndarray:
    """Filter responses float32 [H, W, features] of a grey image [H, W]: at each scale the Gaussian, the magnitude of
    its Sobel gradient, both eigenvalues of its Hessian; and the differences of Gaussians."""
    from scipy.ndimage import gaussian_filter, sobel

    image = image.astype(np.float32)
    found, smooth = [image], []
    for scale in SCALES:
        smooth.append(gaussian_filter(image, scale))
        found += [smooth[-1], np.hypot(sobel(smooth[-1], 0), sobel(smooth[-1], 1))]
        yy, xy, xx = (gaussian_filter(image, scale, order) * scale**2 for order in ((2, 0), (1, 1), (0, 2)))
        middle, half = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
        found += [middle + half, middle - half]
    found += [smooth[i] - smooth[j] for i in range(len(smooth)) for j in range(i)]
    return np.stack(found, axis=-1)


def network(config: MembraneConfig, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of membrane by a run of the recipe."""
    segmenter = Segmenter(zoo.load(str(config.run)))
    validation, test = (
        np.stack([segmenter(image)[..., MEMBRANE] for image in split.arrays["image"]])
        for split in (dataset.validation, dataset.test)
    )
    return validation, test


def best_level(scores: np.ndarray, masks: np.ndarray) -> float:
    """The level from which on scores [n, H, W] are membrane, so that its IoU is greatest."""
    return max(map(float, np.quantile(scores, LEVELS)), key=lambda level: measured_iou(scores >= level, masks))


def measured_iou(membrane: np.ndarray, masks: np.ndarray) -> float:
    return float(overlaps(confusion(membrane, masks))[0][MEMBRANE])


def confusion(membrane: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Counts of pixels float [2, 2], a row a label, a column a prediction: membrane, cell."""
    pairs = 2 * (masks != MEMBRANE).ravel() + ~membrane.ravel()
    return np.bincount(pairs, minlength=4).reshape(2, 2).astype(float)


def measured(scores: np.ndarray, masks: np.ndarray, level: float) -> dict[str, float]:
    """The metrics of test sections; the Rand error chooses its own level, as ISBI's rules do."""
    counts = confusion(scores >= level, masks)
    iou, _ = overlaps(counts)
    low, high = scores.min(), scores.max()
    error = rand_error(1 - (scores - low) / (high - low), masks)
    wrong = 1 - np.trace(counts) / counts.sum()
    return {"membrane_iou": iou[0], "cell_iou": iou[1], "pixel_error": float(wrong), "rand_error": error}
