"""Operations on boxes beside their definitions, and where boxes have no area, or there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.ops import boxes as box_ops
from zoo.ops.roi_align import roi_align, roi_max_pool

DEGENERATE = jnp.array([[5.0, 5, 5, 5], [9, 9, 3, 4], [0, 0, 10, 10], [-5, -5, 3, 3], [1e6, 1e6, 2e6, 2e6]])


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(1, 40, (count, 2))], axis=1).astype(np.float32)


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray) -> list[int]:
    """Non-maximum suppression as it is defined, box by box."""
    overlap, kept = np.asarray(box_ops.iou(boxes[:, None], boxes)), []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] > -np.inf and all(overlap[j, i] <= threshold or groups[i] != groups[j] for j in kept):
            kept.append(int(i))
    return sorted(kept)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_nms_keeps_what_the_greedy_loop_keeps(seed: int, threshold: float) -> None:
    """With equal scores, groups, and boxes that do not count."""
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 40), rng.integers(0, 12, 40).astype(np.float32)
    scores[rng.random(40) < 0.2] = -np.inf
    groups = rng.integers(0, 2, 40)
    kept = jax.jit(box_ops.nms)(boxes, scores, threshold, groups)
    assert np.flatnonzero(kept).tolist() == greedy(boxes, scores, threshold, groups)


def test_nms_of_a_chain_of_boxes() -> None:
    """Each suppresses the next: every second one is kept, however long the chain."""
    x = np.arange(50, dtype=np.float32) * 4
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    kept = box_ops.nms(boxes, jnp.arange(50, 0, -1.0), 0.4)
    assert np.flatnonzero(kept).tolist() == list(range(0, 50, 2))


def test_nms_without_a_box_that_counts() -> None:
    assert not box_ops.nms(DEGENERATE, jnp.full(5, -jnp.inf), 0.5).any()
    assert box_ops.nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5).shape == (0,)
    chosen, valid = box_ops.best(jnp.arange(3.0), jnp.array([True, False, True]), 5)
    assert (chosen[valid].tolist(), int(valid.sum())) == ([2, 0], 2)


def test_offsets_are_inverted() -> None:
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 20), random_boxes(rng, 20)
    for weights in ((1, 1), (10, 5)):
        found = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights)
        np.testing.assert_allclose(found, boxes, rtol=1e-4, atol=1e-3)


def test_a_decoded_side_grows_at_most_62_times() -> None:
    found = box_ops.decode(jnp.array([[0.0, 0, 99, 99]]), jnp.array([[0.0, 0, 10, 10]]))
    np.testing.assert_allclose(found[0, 2:] - found[0, :2], 625, rtol=1e-5)


@pytest.mark.parametrize("function", [box_ops.iou, box_ops.giou, box_ops.encode, box_ops.decode])
def test_degenerate_boxes_give_finite_values_and_gradients(function: object) -> None:
    def total(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(function(a[:, None], b))  # type: ignore[operator]

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(DEGENERATE, DEGENERATE)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_box_without_area_overlaps_nothing() -> None:
    overlap = np.asarray(box_ops.iou(DEGENERATE[:, None], DEGENERATE))
    assert (overlap[:2] == 0).all()
    assert overlap[2, 2] == 1


def test_anchors_of_torchvisions_sizes() -> None:
    """The base anchors of 32 pixels that Ren et al.'s ratios give, rounded; their order; their places."""
    found = box_ops.anchors((32,), (0.5, 1, 2), (2, 3), (32, 48))
    assert found.shape == (18, 4)
    np.testing.assert_array_equal(found[:3], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(found[3] - found[0], [16, 0, 16, 0])
    np.testing.assert_array_equal(found[9] - found[0], [0, 16, 0, 16])


def test_match_takes_the_best_box_and_rescues_boxes_without_one() -> None:
    overlap = jnp.array([[0.8, 0.4, 0.1, 0.0], [0.6, 0.2, 0.35, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert box_ops.match(overlap, 0.3, 0.7).tolist() == [0, -2, -2, -1]
    assert box_ops.match(overlap.at[1, 0].set(0.3), 0.3, 0.7, rescue=True).tolist() == [0, -2, 1, -1]
    assert box_ops.match(jnp.zeros((2, 3)), 0.3, 0.7, rescue=True).tolist() == [-1, -1, -1]


def test_sample_fills_up_with_negatives() -> None:
    positive = jnp.arange(40) < 10
    negative = (jnp.arange(40) >= 10) & (jnp.arange(40) < 35)
    for key in range(5):
        chosen = box_ops.sample(jax.random.key(key), positive, negative, 16, 0.25)
        assert (int(chosen.sum()), int((chosen & positive).sum())) == (16, 4)
        assert not bool(chosen[35:].any())
    everything = box_ops.sample(jax.random.key(0), positive, negative, 1000, 0.5)
    assert everything.tolist() == (positive | negative).tolist()
    few = box_ops.sample(jax.random.key(0), jnp.zeros(40, bool), jnp.zeros(40, bool), 16, 0.25)
    assert not few.any()
    choices = {tuple(box_ops.sample(jax.random.key(k), positive, negative, 16, 0.25).tolist()) for k in range(5)}
    assert len(choices) == 5


@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_of_degenerate_boxes_are_finite(ratio: int) -> None:
    features = jnp.asarray(np.random.default_rng(0).normal(size=(6, 7, 2)), jnp.float32)
    boxes = DEGENERATE[:4]
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(roi_align(x, boxes, 3, 0.5, ratio, True)))(features)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isfinite(roi_max_pool(features, DEGENERATE, 3, 0.5)).all()
    assert roi_align(features, jnp.zeros((0, 4)), 3, 0.5, ratio).shape == (0, 3, 3, 2)


def test_a_region_of_a_ramp_has_the_means_of_its_bins() -> None:
    """A map whose values are their places: bins of a 4 x 4 region about cells 2 to 5 have the places of their
    centres."""
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij"), axis=-1)
    found = roi_align(ramp, jnp.array([[20.0, 20, 60, 60]]), 2, 0.1, 2, aligned=True)[0]
    np.testing.assert_allclose(found[..., 0], [[2.5, 2.5], [4.5, 4.5]], atol=1e-6)
    np.testing.assert_allclose(found[..., 1], [[2.5, 4.5], [2.5, 4.5]], atol=1e-6)
