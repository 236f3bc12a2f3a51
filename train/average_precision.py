"""Detections beside boxes: matches, average precision by COCO's rules, and kinds of errors.

Boxes are (x0, y0, x1, y1), float [n, 4]; everything runs on the host, in NumPy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


@dataclasses.dataclass(frozen=True)
class Image:
    """What was detected in an image, highest score first, and what is there."""

    boxes: np.ndarray  # [d, 4]
    scores: np.ndarray  # [d]
    labels: np.ndarray  # int [d]
    real: np.ndarray  # [m, 4]
    real_labels: np.ndarray  # int [m]
    ignored: np.ndarray  # bool [m]: neither found nor missed


def overlaps(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of all pairs, [n, m]; over the area of a's box where b's is a `crowd` (bool [m])."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    of_a, of_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    union = of_a[:, None] + of_b - common
    if crowd is not None:
        union = np.where(crowd, of_a[:, None], union)
    return common / np.maximum(union, 1e-9)


def matches(image: Image, label: int, threshold: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Of the detections of a class: their scores, whether each is right (1), wrong (0) or not counted (-1), int [d];
    and how many boxes of the class there are.

    By falling score each takes the box that it overlaps most of those that are left, by `threshold` at least; one that
    overlaps nothing but an ignored box is not counted.
    """
    mine, theirs = image.labels == label, image.real_labels == label
    ignored = image.ignored[theirs]
    overlap = overlaps(image.boxes[mine], image.real[theirs], ignored)
    taken, found = np.zeros(len(ignored), bool), np.zeros(int(mine.sum()), int)
    for i, row in enumerate(overlap):
        free = np.where(~taken & ~ignored & (row >= min(threshold, 1 - 1e-10)), row, -1)
        if len(free) and free.max() >= 0:
            best = len(free) - 1 - int(np.argmax(free[::-1]))  # the last of equal ones, as COCO's code
            taken[best], found[i] = True, 1
        elif np.any(row[ignored] >= threshold):
            found[i] = -1
    return image.scores[mine], found, int((~ignored).sum())


def curve(images: Sequence[Image], label: int, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall, precision and score after each counted detection of a class, [d]; recall is NaN without a box."""
    parts = [matches(image, label, threshold) for image in images]
    scores, found = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.argsort(-scores, kind="mergesort")
    scores, found = scores[order], found[order]
    scores, right = scores[found >= 0], found[found >= 0] == 1
    total = sum(part[2] for part in parts)
    hits = np.cumsum(right)
    return hits / total if total else np.full(len(hits), np.nan), hits / np.arange(1, len(hits) + 1), scores


def average_precision(images: Sequence[Image], label: int, threshold: float = 0.5) -> float:
    """The mean over 101 recalls of the best precision at this recall or more, 0 to 1; NaN for a class without a box."""
    recall, precision, _ = curve(images, label, threshold)
    if not any(np.any((image.real_labels == label) & ~image.ignored) for image in images):
        return float("nan")
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.mean([best[place] if place < len(best) else 0.0 for place in places]))


def errors(image: Image, threshold: float) -> dict[str, np.ndarray]:
    """The detections with a score of at least the threshold by kind, and the boxes that none found: numbers, int.

    `right`; `class`, on a box of another class; `localisation`, on a box of its class by 0.1 to 0.5; `duplicate`, on
    one that a better detection has; `background`, on nothing (Bolya et al. 2020, TIDE, without its `both`); `missed`.
    """
    kinds: dict[str, list[int]] = {kind: [] for kind in (*ERRORS, "right")}
    overlap = overlaps(image.boxes, image.real)
    taken = np.zeros(len(image.real), bool)
    for i in np.flatnonzero(image.scores >= threshold).tolist():
        same = image.real_labels == image.labels[i]
        free = np.where(same & ~taken, overlap[i], 0)
        if free.max(initial=0) >= 0.5:
            best = int(np.argmax(free))
            taken[best] = True
            if not image.ignored[best]:
                kinds["right"].append(i)
        elif np.where(same, overlap[i], 0).max(initial=0) >= 0.5:
            kinds["duplicate"].append(i)
        elif overlap[i].max(initial=0) >= 0.5:
            kinds["class"].append(i)
        elif np.where(same, overlap[i], 0).max(initial=0) >= 0.1:
            kinds["localisation"].append(i)
        else:
            kinds["background"].append(i)
    kinds["missed"] = np.flatnonzero(~taken & ~image.ignored).tolist()
    return {kind: np.array(found, int) for kind, found in kinds.items()}


ERRORS = ("localisation", "class", "duplicate", "background", "missed")


def coco(images: Sequence[Image], labels: Sequence[str]) -> dict[str, float]:
    """COCO's twelve figures, by its own code (pycocotools), 0 to 1: map, map_50, ..., by name; -1 where there are no
    such boxes. Sizes are in the pixels of the boxes."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for box, label, crowd in zip(image.real, image.real_labels, image.ignored, strict=True):
            about = {"id": len(truth) + 1, "image_id": number, "category_id": int(label) + 1, "iscrowd": int(crowd)}
            truth.append({**about, "bbox": _sides(box), "area": float(np.prod(box[2:] - box[:2]))})
        for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
            where = {"image_id": number, "category_id": int(label) + 1, "bbox": _sides(box)}
            found.append({**where, "score": float(score)})
    if not found:
        return dict.fromkeys(COCO_FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": number} for number in range(1, len(images) + 1)],
            "categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)],
            "annotations": truth,
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_FIGURES, map(float, evaluation.stats), strict=True))


COCO_FIGURES = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("recall_1", "recall_10", "recall_100", "recall_small", "recall_medium", "recall_large"),
)


def _sides(box: np.ndarray) -> list[float]:
    return [float(n) for n in (*box[:2], *(box[2:] - box[:2]))]
