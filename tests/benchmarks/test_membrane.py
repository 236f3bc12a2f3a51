"""The baselines of membranes: filter responses, levels, and both methods on sections that are easy to tell apart."""

import numpy as np
import pytest
from PIL import Image

import train
import zoo
from benchmarks import membrane


def test_a_network_needs_its_run():
    for config in (membrane.MembraneConfig(("network",)), membrane.MembraneConfig(run="x")):
        with pytest.raises(
            zoo.ZooError, match="the method network and --run, a run of the recipe membrane, go together"
        ):
            membrane.run(config)


CONFIG = membrane.MembraneConfig(pixels=2000, trees=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Dark walls, four pixels wide, between bright cells, in noise."""
    root, rng = tmp_path_factory.mktemp("sections"), np.random.default_rng(0)
    for split, n in (("train", 3), ("validation", 2), ("test", 2)):
        for i in range(n):
            rows, columns = np.mgrid[:48, :48] + rng.integers(0, 16, 2)[:, None, None]
            cell = (rows % 16 > 3) & (columns % 16 > 3)
            for name, pixels in (("images", 70 + 90 * cell + rng.normal(0, 12, cell.shape)), ("masks", cell)):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return train.SegmentationData(path=str(root)).load((16, 16, 1))


def test_responses_know_a_ridge_from_an_edge():
    image = np.zeros((33, 33))
    image[:, 15:18] = 100
    found = membrane.responses(image)
    assert found.shape == (33, 33, 1 + 4 * len(membrane.SCALES) + 6)
    _, smooth, gradient, large, small = np.moveaxis(found[16], -1, 0)[:5]
    assert smooth.argmax() == 16
    assert gradient[16] < 1e-3 < gradient[14]
    assert small[16] == small.min() < 0
    assert abs(large[16]) < 0.1 < large[14]  # along the ridge nothing changes


def test_the_best_level_has_the_greatest_iou():
    masks = np.array([[[0, 0, 0, 1, 1, 1, 1, 1]]], np.uint8)
    scores = np.array([[[0.9, 0.8, 0.3, 0.4, 0.2, 0.1, 0.1, 0.0]]])
    level = membrane.best_level(scores, masks)
    assert 0.4 < level <= 0.8 or 0.2 < level <= 0.3  # two of three alone, or three of four
    counts = membrane.confusion(scores >= 0.25, masks)
    np.testing.assert_array_equal(counts, [[3, 0], [1, 4]])
    assert membrane.measured_iou(scores >= 0.25, masks) == 3 / 4


@pytest.mark.parametrize(("method", "least"), [(membrane.threshold, 0.6), (membrane.forest, 0.8)])
def test_a_method_learns_from_training_sections(method, least, dataset):
    validation, test = method(CONFIG, dataset)
    level = membrane.best_level(validation, dataset.validation.arrays["mask"])
    found = membrane.measured(test, dataset.test.arrays["mask"], level)
    assert found["membrane_iou"] > least
    assert 0 <= found["rand_error"] < 0.5
    again, _ = method(CONFIG, dataset)
    np.testing.assert_allclose(again, validation, atol=1e-9)  # trees are added up in the order in which they end
