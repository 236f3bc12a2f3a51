"""Faster R-CNN (Ren et al. 2015, "Faster R-CNN: towards real-time object detection with region proposal networks") on a
feature pyramid (Lin et al. 2017), as in torchvision.

A pyramid of maps; at each cell and for each anchor a score and a box (the region proposal network); the best of these
as regions, pooled to 7x7 (ROI Align instead of the paper's ROI pooling); two dense layers; for each region a class and
a box of each class. Shapes are static: a fixed number of proposals and of detections, of which some do not count.

`__call__` detects; `losses` has the four losses, with targets, for training.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from zoo.cnn.layers import Conv, DenseOverMap, check_images
from zoo.cnn.pyramid import Pyramid, Top
from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops import boxes as box_ops
from zoo.ops.precision import at_least_float32
from zoo.ops.roi_align import pyramid_align
from zoo.registry import register

Detections = dict[str, jax.Array]
Losses = dict[str, tuple[jax.Array, jax.Array]]

BOX_WEIGHTS = (10, 5)  # of a region's offsets: of centre and sides
BETA = 1 / 9  # where the smooth L1 loss turns linear
LEAST_SIDE = 1e-3  # pixels, of proposals
LEAST_DETECTED = 1e-2  # pixels, of detections
CANDIDATES = 5000  # detections before suppression
POOLED = 7  # a region's height and width
CANONICAL_LEVEL = 4  # a region of `canonical_size` is pooled from the map at stride 2^4 (Lin et al. 2017, equation 1)
normal = nn.initializers.normal(0.01)


class ProposalHead(nn.Module):
    """A map [B, H, W, C] to scores [B, H W A] and offsets [B, H W A, 4] of A anchors a cell."""

    width: int
    anchors: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        conv = partial(Conv, kernel_init=normal, dtype=self.dtype, param_dtype=self.param_dtype)
        y = nn.relu(conv(self.width, (3, 3), padding=1, name="conv_0_0")(x))
        scores = conv(self.anchors, (1, 1), name="cls_logits")(y)
        offsets = conv(4 * self.anchors, (1, 1), name="bbox_pred")(y)
        count = x.shape[1] * x.shape[2] * self.anchors
        wide = at_least_float32(x)
        return scores.reshape(x.shape[0], count).astype(wide), offsets.reshape(x.shape[0], count, 4).astype(wide)


class BoxHead(nn.Module):
    """Pooled regions [N, 7, 7, C] to [N, hidden_size]."""

    hidden_size: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(DenseOverMap(self.hidden_size, **dtypes, name="fc6")(x))
        return nn.relu(nn.Dense(self.hidden_size, **dtypes, name="fc7")(x))


class BoxPredictor(nn.Module):
    """[N, hidden_size] to logits [N, 1 + classes], background first, and offsets [N, 1 + classes, 4]."""

    num_classes: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        logits = dense(self.num_classes + 1, name="cls_score")(x)
        offsets = dense(4 * (self.num_classes + 1), name="bbox_pred")(x)
        wide = at_least_float32(x)
        return logits.astype(wide), offsets.reshape(x.shape[0], self.num_classes + 1, 4).astype(wide)


class FasterRCNN(nn.Module):
    """Images [B, H, W, C] to detections: `boxes` [B, D, 4] (x0, y0, x1, y1 in pixels), `scores` [B, D], highest first,
    and `labels` int32 [B, D] of 0 to num_classes - 1; -1, with a score of 0, where there are fewer.

    `sizes` [B, 2], height and width, are those of images that are padded at the right and the bottom; boxes end there.
    Features: pyramid1, pyramid2, ... (the pyramid's maps, finest first). `axis_name`: see `ResNet`.
    """

    backbone_name: str = "resnet50"
    backbone_args: dict[str, Any] = FrozenDict()  # type: ignore[assignment]
    stages: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")  # features of the backbone
    top: Top = "pool"
    width: int = 256  # of the pyramid
    hidden_size: int = 1024
    num_classes: int = 90  # without background
    anchors: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # sides in pixels, of each map
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of an anchor's height to its width
    canonical_size: int = 224  # pixels; see CANONICAL_LEVEL
    # best of each map before, and of all after suppression, in training and in prediction
    train_proposals: tuple[int, int] = (2000, 2000)
    num_proposals: tuple[int, int] = (1000, 1000)
    proposal_threshold: float = 0.0  # the least score of a proposal, in prediction
    proposal_overlap: float = 0.7  # more suppresses a proposal
    anchor_overlaps: tuple[float, float] = (0.3, 0.7)  # with a box: background below, foreground from here on
    anchor_samples: int = 256  # an image
    region_overlap: float = 0.5  # with a box: foreground from here on
    region_samples: int = 512  # an image
    region_share: float = 0.25  # of them that may be foreground
    score_threshold: float = 0.05  # the least score of a detection
    overlap: float = 0.5  # more suppresses a detection of the same class
    num_detections: int = 100  # an image
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "box_predictor"
    detects = True  # objects, and has `losses`

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.backbone = Pyramid(
            self.backbone_name,
            self.backbone_args,
            self.stages,
            self.width,
            self.top,
            axis_name=self.axis_name,
            **dtypes,
        )
        self.rpn_head = ProposalHead(self.width, len(self.anchors[0]) * len(self.ratios), **dtypes)
        self.box_head = BoxHead(self.hidden_size, **dtypes)
        self.box_predictor = BoxPredictor(self.num_classes, **dtypes)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None, train: bool = False) -> Detections:
        check_images(self, images, least=32)
        sizes = whole(images) if sizes is None else sizes
        maps, scores, offsets, anchors = self._proposing(images, train)
        regions, valid = self._proposals(scores, offsets, anchors, sizes, self.num_proposals, self.proposal_threshold)
        logits, offsets = self._classified(maps, regions, images.shape[1:3])
        scores = jnp.where(valid[..., None], jax.nn.softmax(logits)[..., 1:], -jnp.inf)
        boxes = box_ops.decode(offsets[:, :, 1:], regions[:, :, None], BOX_WEIGHTS)
        detect = partial(detections, threshold=self.score_threshold, overlap=self.overlap, number=self.num_detections)

        def of_image(boxes: jax.Array, scores: jax.Array, size: jax.Array) -> Detections:
            labels = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape).ravel()
            return detect(boxes.reshape(-1, 4), scores.ravel(), labels, size)

        return jax.vmap(of_image)(boxes, scores, sizes)

    def losses(
        self,
        images: jax.Array,
        boxes: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
        sizes: jax.Array | None = None,
        train: bool = False,
    ) -> Losses:
        """The four losses of images with boxes [B, M, 4] of `labels` int [B, M], below 0 for padding.

        Each is (sums [B], counts [B]) of an image, float32: the loss is the sum of the sums over that of the counts.
        `keys` [B] draw the anchors and the regions that are compared. Names: objectness, proposal_box, classifier, box.
        """
        sizes = whole(images) if sizes is None else sizes
        maps, scores, offsets, anchors = self._proposing(images, train)
        regions, valid = self._proposals(scores, offsets, anchors, sizes, self.train_proposals, 0.0)
        keys = jax.vmap(jax.random.split)(keys)
        rpn = jax.vmap(self._proposal_losses, (0, 0, None, 0, 0, 0))(
            scores, offsets, jnp.concatenate(anchors), boxes, labels >= 0, keys[:, 0]
        )
        regions, targets, classes, chosen = jax.vmap(self._sampled)(regions, valid, boxes, labels, keys[:, 1])
        logits, found = self._classified(maps, regions, images.shape[1:3])
        return rpn | jax.vmap(_region_losses)(logits, found, targets, classes, chosen)

    def _proposing(
        self, images: jax.Array, train: bool
    ) -> tuple[list[jax.Array], jax.Array, jax.Array, list[jax.Array]]:
        """The maps; scores [B, A] and offsets [B, A, 4] of all anchors; the anchors of each map, [a, 4]."""
        maps = sown(self, self.backbone(images, train))
        scores, offsets = zip(*map(self.rpn_head, maps), strict=True)
        anchors = map_anchors(self.anchors, self.ratios, maps, images)
        return maps, jnp.concatenate(scores, 1), jnp.concatenate(offsets, 1), anchors

    def _proposals(
        self,
        scores: jax.Array,
        offsets: jax.Array,
        anchors: list[jax.Array],
        sizes: jax.Array,
        numbers: tuple[int, int],
        threshold: float,
    ) -> tuple[jax.Array, jax.Array]:
        """The proposals [B, P, 4], without a gradient, and which of them are some, bool [B, P]."""
        scores, offsets = jax.lax.stop_gradient((scores, offsets))
        starts = [0]
        for part in anchors:
            starts.append(starts[-1] + len(part))

        def of_image(scores: jax.Array, offsets: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
            boxes, best, levels = [], [], []
            for level, part in enumerate(anchors):
                here = slice(starts[level], starts[level + 1])
                top, chosen = jax.lax.top_k(scores[here], min(numbers[0], len(part)))
                boxes.append(box_ops.decode(offsets[here][chosen], part[chosen]))
                best.append(top)
                levels.append(jnp.full(len(top), level))
            found, score, groups = map(jnp.concatenate, (boxes, best, levels))
            found = box_ops.clip(found, size)
            large = jnp.all(found[:, 2:] - found[:, :2] >= LEAST_SIDE, axis=-1)
            score = jnp.where(large & (jax.nn.sigmoid(score) >= threshold), score, -jnp.inf)
            kept = box_ops.nms(found, score, self.proposal_overlap, groups)
            chosen, valid = box_ops.best(score, kept, numbers[1])
            return found[chosen], valid

        return jax.vmap(of_image)(scores, offsets, sizes)

    def _proposal_losses(
        self,
        scores: jax.Array,
        offsets: jax.Array,
        anchors: jax.Array,
        boxes: jax.Array,
        real: jax.Array,
        key: jax.Array,
    ) -> Losses:
        """Binary cross-entropy and smooth L1 of the sampled anchors of an image."""
        overlap = jnp.where(real[:, None], box_ops.iou(boxes[:, None], anchors), 0)
        found = box_ops.match(overlap, *self.anchor_overlaps, rescue=True)
        positive = found >= 0
        chosen = box_ops.sample(key, positive, found == box_ops.BACKGROUND, self.anchor_samples, 0.5)
        count = jnp.sum(chosen, dtype=jnp.float32)
        losses = jax.nn.softplus(scores) - positive * scores
        target = box_ops.encode(boxes[jnp.maximum(found, 0)], anchors)
        errors = smooth_l1(offsets - target).sum(axis=-1)
        return {
            "objectness": (jnp.sum(jnp.where(chosen, losses, 0)), count),
            "proposal_box": (jnp.sum(jnp.where(chosen & positive, errors, 0)), count),
        }

    def _sampled(
        self, regions: jax.Array, valid: jax.Array, boxes: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Regions [S, 4] of an image to compare, the boxes among them; their targets [S, 4], their classes int [S], 0
        for background; and which count, bool [S]."""
        real = labels >= 0
        regions, valid = jnp.concatenate([regions, boxes]), jnp.concatenate([valid, real])
        overlap = jnp.where(real[:, None], box_ops.iou(boxes[:, None], regions), 0)
        found = box_ops.match(overlap, self.region_overlap, self.region_overlap)
        positive = (found >= 0) & valid
        taken = box_ops.sample(key, positive, valid & ~positive, self.region_samples, self.region_share)
        _, chosen = jax.lax.top_k(taken.astype(jnp.float32), min(self.region_samples, len(taken)))
        regions, found = regions[chosen], jnp.maximum(found[chosen], 0)
        classes = jnp.where(positive[chosen], labels[found] + 1, 0)
        return regions, box_ops.encode(boxes[found], regions, BOX_WEIGHTS), classes, taken[chosen]

    def _classified(
        self, maps: list[jax.Array], regions: jax.Array, size: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, R, 1 + classes] and offsets [B, R, 1 + classes, 4] of regions [B, R, 4]."""
        maps = maps[: len(self.stages)]
        strides = [round(math.log2(size[0] / x.shape[1])) for x in maps]
        side = jnp.sqrt(box_ops.area(regions))
        level = jnp.floor(CANONICAL_LEVEL + jnp.log2(jnp.maximum(side, 1e-6) / self.canonical_size) + 1e-6)
        level = jnp.clip(level, strides[0], strides[-1]).astype(jnp.int32) - strides[0]
        pool = partial(pyramid_align, size=POOLED, scales=[0.5**stride for stride in strides], ratio=2)
        pooled = jax.vmap(lambda maps, regions, level: pool(maps, regions, level))(maps, regions, level)
        shape = regions.shape[:2]
        logits, offsets = self.box_predictor(self.box_head(pooled.reshape(shape[0] * shape[1], *pooled.shape[2:])))
        return logits.reshape(*shape, *logits.shape[1:]), offsets.reshape(*shape, *offsets.shape[1:])


def sown(module: nn.Module, maps: Sequence[jax.Array]) -> list[jax.Array]:
    """The maps of a pyramid, after storing them as features."""
    return [sow(module, f"pyramid{level}", x) for level, x in enumerate(maps, start=1)]


def map_anchors(
    sides: Sequence[Sequence[float]], ratios: Sequence[float], maps: Sequence[jax.Array], images: jax.Array
) -> list[jax.Array]:
    """The anchors [A, 4] of each map of images."""
    if len(maps) != len(sides):
        raise ZooError(f"anchors must have sides for each of the pyramid's {len(maps)} maps, not {sides}")
    return [
        jnp.asarray(box_ops.anchors(own, ratios, x.shape[1:3], images.shape[1:3]), at_least_float32(x))
        for own, x in zip(sides, maps, strict=True)
    ]


def whole(images: jax.Array) -> jax.Array:
    """The sizes [B, 2] of images without padding."""
    return jnp.full((images.shape[0], 2), jnp.array(images.shape[1:3]), at_least_float32(images))


def smooth_l1(errors: jax.Array) -> jax.Array:
    """Girshick 2015, equation 3, quadratic up to BETA."""
    size = jnp.abs(errors)
    return jnp.where(size < BETA, 0.5 * errors**2 / BETA, size - 0.5 * BETA)


def _region_losses(
    logits: jax.Array, offsets: jax.Array, targets: jax.Array, classes: jax.Array, chosen: jax.Array
) -> Losses:
    """Cross-entropy and smooth L1 of the sampled regions of an image."""
    count = jnp.sum(chosen, dtype=jnp.float32)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1)[:, 0]
    own = jnp.take_along_axis(offsets, classes[:, None, None], axis=1)[:, 0]
    errors = smooth_l1(own - targets).sum(axis=-1)
    return {
        "classifier": (jnp.sum(jnp.where(chosen, losses, 0)), count),
        "box": (jnp.sum(jnp.where(chosen & (classes > 0), errors, 0)), count),
    }


def detections(
    boxes: jax.Array,
    scores: jax.Array,
    labels: jax.Array,
    size: jax.Array,
    threshold: float,
    overlap: float,
    number: int,
    least_side: float = LEAST_DETECTED,
) -> Detections:
    """The detections of an image among candidate boxes [n, 4] with scores and labels [n], after suppression by class.

    Of more than `CANDIDATES` with a score above the threshold, only the best are looked at.
    """
    boxes = box_ops.clip(boxes, size)
    large = jnp.all(boxes[:, 2:] - boxes[:, :2] >= least_side, axis=-1)
    scores = jnp.where(large & (scores > threshold), scores, -jnp.inf)
    scores, chosen = jax.lax.top_k(scores, min(CANDIDATES, len(scores)))
    boxes, labels = boxes[chosen], labels[chosen]
    kept = box_ops.nms(boxes, scores, overlap, labels)
    chosen, valid = box_ops.best(scores, kept, number)
    short = number - len(chosen)
    found = {
        "boxes": jnp.where(valid[:, None], boxes[chosen], 0),
        "scores": jnp.where(valid, scores[chosen], 0),
        "labels": jnp.where(valid, labels[chosen], -1).astype(jnp.int32),
    }
    fill = {"boxes": 0, "scores": 0, "labels": -1}
    return {
        name: jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1)), constant_values=fill[name])
        for name, x in found.items()
    }


PAPER = "Ren et al. 2015, Faster R-CNN: towards real-time object detection, arXiv:1506.01497"
VARIANTS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "fasterrcnn_resnet50_fpn": ((800, 800, 3), {}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        (320, 320, 3),
        {
            "backbone_name": "mobilenet_v3_large",
            "backbone_args": {"norm_epsilon": 1e-5},
            "stages": ("stage4_first", "last"),
            "anchors": ((32, 64, 128, 256, 512),) * 3,
            "num_proposals": (150, 150),
            "proposal_threshold": 0.05,
        },
    ),
}
for _name, (_shape, _row) in VARIANTS.items():
    register(_name, family="cnn", input_shape=_shape, paper=PAPER)(partial(FasterRCNN, **_row))
