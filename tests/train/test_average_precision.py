"""Average precision beside COCO's own code, and errors by kind."""

import numpy as np
import pytest

from train.average_precision import ERRORS, Image, average_precision, coco, curve, errors, overlaps


def random_images(rng: np.random.Generator, count: int) -> list[Image]:
    """Detections near boxes, on other classes, twice, and nowhere; some boxes are crowds."""
    images = []
    for _ in range(count):
        real = _boxes(rng, rng.integers(0, 6))
        labels, ignored = rng.integers(0, 3, len(real)), rng.random(len(real)) < 0.1
        near = real + rng.normal(scale=4, size=real.shape)
        found = np.concatenate([near, near[: len(near) // 2] + 2, _boxes(rng, rng.integers(0, 4))])
        guess = np.concatenate([labels, labels[: len(near) // 2], rng.integers(0, 3, len(found) - len(near) * 3 // 2)])
        guess = np.where(rng.random(len(guess)) < 0.2, rng.integers(0, 3, len(guess)), guess)[: len(found)]
        scores = np.sort(rng.integers(1, 100, len(found)) / 100)[::-1]
        order = rng.permutation(len(found))
        images.append(Image(found[order], scores, guess[order], real, labels, ignored))
    return images


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(15, 80, (count, 2))], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_cocos(seed: int) -> None:
    images = random_images(np.random.default_rng(seed), 40)
    theirs = coco(images, ("a", "b", "c"))
    for threshold, name in ((0.5, "map_50"), (0.75, "map_75")):
        ours = np.mean([average_precision(images, label, threshold) for label in range(3)])
        assert 0.1 < ours < 0.95
        assert ours == pytest.approx(theirs[name], abs=1e-12)


def image(found: list, real: list, scores: list | None = None, ignored: list | None = None) -> Image:
    """An image of (x0, y0, x1, y1, label) detections and boxes."""
    found_, real_ = (np.array(x, float).reshape(-1, 5) for x in (found, real))
    return Image(
        found_[:, :4],
        np.array(scores or np.linspace(0.9, 0.6, len(found_))),
        found_[:, 4].astype(int),
        real_[:, :4],
        real_[:, 4].astype(int),
        np.array(ignored or [False] * len(real_)),
    )


def test_average_precision_by_hand() -> None:
    """Of two boxes one is found, first: precision 1 up to recall 1/2, which 51 of 101 recalls reach."""
    of = [image([[0, 0, 10, 10, 0], [50, 50, 60, 60, 0]], [[0, 0, 10, 10, 0], [20, 20, 30, 30, 0]])]
    assert average_precision(of, 0) == pytest.approx(51 / 101)
    assert np.isnan(average_precision(of, 1))
    recall, precision, _ = curve(of, 0)
    assert (recall.tolist(), precision.tolist()) == ([0.5, 0.5], [1, 0.5])
    assert average_precision([image([], [[0, 0, 10, 10, 0]])], 0) == 0


def test_each_box_is_found_once_and_ignored_ones_never() -> None:
    twice = [image([[0, 0, 10, 10, 0], [0, 0, 10, 10, 0]], [[0, 0, 10, 10, 0]])]
    assert curve(twice, 0)[1].tolist() == [1, 0.5]
    crowd = [
        image([[0, 0, 10, 10, 0], [40, 40, 50, 50, 0]], [[0, 0, 10, 10, 0], [40, 40, 90, 90, 0]], None, [False, True])
    ]
    assert curve(crowd, 0)[1].tolist() == [1]
    assert average_precision(crowd, 0) == 1


def test_without_a_detection_all_figures_are_0() -> None:
    assert set(coco([image([], [[0, 0, 10, 10, 0]])], ("a",)).values()) == {0.0}


def test_errors_by_kind() -> None:
    real = [[0, 0, 10, 10, 0], [30, 0, 40, 10, 1], [60, 0, 70, 10, 0], [0, 50, 10, 60, 1]]
    found = [
        *([0, 0, 10, 10, 0], [1, 0, 10, 10, 0], [30, 0, 40, 10, 0], [60, 0, 70, 4, 0], [90, 90, 99, 99, 1]),
        [0, 50, 10, 60, 1],
    ]
    kinds = errors(image(found, real, [0.9, 0.8, 0.7, 0.6, 0.5, 0.1]), 0.3)
    expected = {
        "right": [0],
        "duplicate": [1],
        "class": [2],
        "localisation": [3],
        "background": [4],
        "missed": [1, 2, 3],
    }
    assert {kind: which.tolist() for kind, which in kinds.items()} == expected
    assert {*kinds} == {*ERRORS, "right"}


def test_overlap_with_a_crowd_is_over_the_detection() -> None:
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 100, 100], [0, 0, 100, 100]])
    np.testing.assert_allclose(overlaps(a, b, np.array([False, True])), [[0.01, 1]])
