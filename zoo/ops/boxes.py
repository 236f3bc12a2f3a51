"""Boxes (x0, y0, x1, y1) in pixels: overlap, anchors, their offsets, matching, sampling and non-maximum suppression.

All shapes are static: what does not count is masked, so that every function compiles, also inside `vmap`. Boxes without
area overlap with nothing, and values and gradients stay finite.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

MOST_GROWTH = math.log(1000 / 16)  # of a side in `decode`, so that no exponential overflows
LEAST_SIDE = 1e-3  # pixels, of boxes in `encode`
BACKGROUND, BETWEEN = -1, -2  # what `match` gives beside numbers of boxes


def area(boxes: jax.Array) -> jax.Array:
    """Boxes [..., 4] to areas [...]; 0 where sides are swapped."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def _intersection_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = area(jnp.concatenate([low, high], axis=-1))
    return common, area(a) + area(b) - common


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes [..., 4], which broadcast: of all pairs, [n, m], for a[:, None] and b."""
    return _ratio(*_intersection_union(a, b))


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised intersection over union, -1 to 1 (Rezatofighi et al. 2019, algorithm 1); broadcasts like `iou`."""
    common, union = _intersection_union(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return _ratio(common, union) - _ratio(hull - union, hull)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Boxes [..., 4] cut at the border of an image of `size` [2], height and width."""
    return jnp.clip(boxes, 0, jnp.stack([size[1], size[0], size[1], size[0]]).astype(boxes.dtype))


def anchors(
    sizes: Sequence[float], ratios: Sequence[float], shape: tuple[int, ...], size: tuple[int, ...]
) -> np.ndarray:
    """Anchors float32 [H W ratios sizes, 4] of a map of `shape` (H, W), in this order of axes,
    for images of a `size` (height, width).

    Each has the area of a square of one of the `sizes` and height / width of one of the `ratios`, rounded to whole
    pixels, about the top left corner of a cell (Ren et al. 2015, section 3.1.1; rounding and centres as torchvision's).
    """
    root = np.sqrt(np.array(ratios, np.float32))[:, None]
    sides = np.array(sizes, np.float32)[None]
    width, height = (sides / root).ravel(), (sides * root).ravel()
    base = np.round(np.stack([-width, -height, width, height], axis=1) / 2)
    y, x = np.meshgrid(
        *(np.arange(n, dtype=np.float32) * (side // n) for n, side in zip(shape, size, strict=True)), indexing="ij"
    )
    places = np.stack([x, y, x, y], axis=-1)
    return (places[:, :, None] + base).reshape(-1, 4)


def _centres(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides


def encode(boxes: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1, 1)) -> jax.Array:
    """The offsets [..., 4] that `decode` turns into the boxes: of the centre in sides of the anchor, and the logarithms
    of the sides' ratios, times the weights of centre and sides (Girshick et al. 2014, appendix C)."""
    (centre, sides), (origin, unit) = _centres(boxes), _centres(anchors)
    unit, sides = jnp.maximum(unit, LEAST_SIDE), jnp.maximum(sides, LEAST_SIDE)
    return jnp.concatenate([weights[0] * (centre - origin) / unit, weights[1] * jnp.log(sides / unit)], axis=-1)


def decode(offsets: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1, 1)) -> jax.Array:
    """Boxes of offsets [..., 4] and anchors, which broadcast; a side grows at most 62.5 times."""
    origin, unit = _centres(anchors)
    centre = origin + offsets[..., :2] / weights[0] * unit
    half = jnp.exp(jnp.minimum(offsets[..., 2:] / weights[1], MOST_GROWTH)) * unit / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def match(overlap: jax.Array, low: float, high: float, rescue: bool = False) -> jax.Array:
    """For each anchor its box, int32 [anchors], of overlaps [boxes, anchors]: the one that overlaps most, by `high` at
    least; `BACKGROUND` below `low`, else `BETWEEN`.

    With `rescue` an anchor that overlaps a box more than all others do is matched too, at any overlap above 0. Rows of
    boxes that do not count are 0, or below.
    """
    best, most = jnp.argmax(overlap, axis=0).astype(jnp.int32), jnp.max(overlap, axis=0, initial=0)
    found = jnp.where(most >= high, best, jnp.where(most < low, BACKGROUND, BETWEEN))
    if rescue:
        of_box = jnp.max(overlap, axis=1, keepdims=True)
        found = jnp.where(jnp.any((overlap == of_box) & (of_box > 0), axis=0), best, found)
    return found


def sample(key: jax.Array, positive: jax.Array, negative: jax.Array, number: int, share: float) -> jax.Array:
    """A random choice, bool [n], of at most `number` of the positive and the negative [n], of which at most the `share`
    are positive; negative ones fill up."""
    size = len(positive)
    draw = jax.random.uniform(key, (size,))
    most = min(int(number * share), size)
    chosen = positive & (draw >= _kth(jnp.where(positive, draw, -1.0), most))
    order = jnp.where(chosen, draw + 1, jnp.where(negative, draw, -1.0))
    return (order >= 0) & (order >= _kth(order, min(number, size)))


def _kth(values: jax.Array, k: int) -> jax.Array:
    """The k-th largest value; infinity for k = 0."""
    return jax.lax.top_k(values, k)[0][-1] if k else jnp.array(jnp.inf)


def nms(boxes: jax.Array, scores: jax.Array, threshold: float, groups: jax.Array | None = None) -> jax.Array:
    """The boxes [n, 4] that non-maximum suppression keeps, bool [n].

    From the highest of the scores [n] down, a box suppresses those of its group (int [n], such as the class) that
    overlap it by more than the threshold. Boxes whose score is minus infinity neither suppress nor are kept. Equal
    scores count in the order of the boxes.

    What is kept solves kept[i] = no kept j before i overlaps i. Iterating this from "all" settles the first i boxes
    after i rounds at most; chains of boxes that suppress each other are short, so that a few rounds of a matrix product
    replace n steps.
    """
    order = jnp.argsort(-scores, stable=True)
    boxes, valid = boxes[order], scores[order] > -jnp.inf
    hits = (iou(boxes[:, None], boxes) > threshold) & valid[:, None] & valid
    if groups is not None:
        hits &= groups[order][:, None] == groups[order]
    places = jnp.arange(len(boxes))
    hits &= places[:, None] < places

    def suppress(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        return valid & ~jnp.any(hits & kept[:, None], axis=0), kept

    kept, _ = jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), suppress, suppress((valid, valid)))
    return jnp.zeros_like(kept).at[order].set(kept)


def best(scores: jax.Array, kept: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """The numbers int [k] of the kept boxes with the highest scores, highest first, and which of them are such, bool
    [k]; k is `number`, or that of the boxes if it is less."""
    values, chosen = jax.lax.top_k(jnp.where(kept, scores, -jnp.inf), min(number, len(scores)))
    return chosen, values > -jnp.inf
