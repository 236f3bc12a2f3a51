"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection"), as in torchvision.

A feature pyramid from stride 8 on; at each cell and for each of nine anchors the scores of all classes and a box, by
two small networks that all maps share. The focal loss keeps the many easy background anchors from outweighing the rest.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from zoo.cnn.faster_rcnn import Detections, Losses, detections, map_anchors, sown, whole
from zoo.cnn.layers import Conv, check_images
from zoo.cnn.pyramid import Pyramid, Top
from zoo.ops import boxes as box_ops
from zoo.ops.precision import at_least_float32
from zoo.registry import register

CANDIDATES = 1000  # anchors and classes of each map that are looked at
PRIOR = 0.01  # the probability of each class at first (section 4.1)
normal = nn.initializers.normal(0.01)


class Tower(nn.Module):
    """Four 3x3 convolutions, [B, H, W, C] to [B, H, W, width]."""

    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv, kernel_init=normal, dtype=self.dtype, param_dtype=self.param_dtype)
        for i in range(4):
            x = nn.relu(conv(self.width, (3, 3), padding=1, name=f"conv_{i}_0")(x))
        return x


class RetinaNet(nn.Module):
    """Images [B, H, W, C] to detections; inputs, outputs and `losses` as of `FasterRCNN`.

    The losses are classifier and box, each the mean over images of a sum over anchors, divided by the number of those
    that are matched. Features: pyramid1, pyramid2, ... (the pyramid's maps, finest first).
    """

    backbone_name: str = "resnet50"
    backbone_args: dict[str, Any] = FrozenDict()  # type: ignore[assignment]
    stages: tuple[str, ...] = ("stage2", "stage3", "stage4")  # features of the backbone
    top: Top = "convolutions"
    width: int = 256
    num_classes: int = 91  # torchvision's, of which the first is no class of COCO
    anchors: tuple[tuple[int, ...], ...] = (  # sides in pixels, of each map
        *((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)),
    )
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of an anchor's height to its width
    anchor_overlaps: tuple[float, float] = (0.4, 0.5)  # with a box: background below, foreground from here on
    alpha: float = 0.25  # of the focal loss: the weight of foreground, against 1 - alpha
    gamma: float = 2.0
    box_loss: Literal["l1", "giou"] = "l1"
    score_threshold: float = 0.05
    overlap: float = 0.5  # more suppresses a detection of the same class
    num_detections: int = 100
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None

    head = "cls_logits"
    detects = True

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
        count = len(self.anchors[0]) * len(self.ratios)
        conv = partial(Conv, kernel_size=(3, 3), padding=1, kernel_init=normal, **dtypes)
        prior = nn.initializers.constant(-jnp.log((1 - PRIOR) / PRIOR))
        self.classification_head = Tower(self.width, **dtypes)
        self.cls_logits = conv(count * self.num_classes, bias_init=prior)
        self.regression_head = Tower(self.width, **dtypes)
        self.bbox_reg = conv(4 * count)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None, train: bool = False) -> Detections:
        check_images(self, images, least=32)
        sizes = whole(images) if sizes is None else sizes
        logits, offsets, anchors = self._outputs(images, train)

        def of_image(logits: list[jax.Array], offsets: list[jax.Array], size: jax.Array) -> Detections:
            boxes, scores, labels = [], [], []
            for level, part in enumerate(anchors):
                score, chosen = jax.lax.top_k(
                    jax.nn.sigmoid(logits[level]).ravel(), min(CANDIDATES, logits[level].size)
                )
                anchor = chosen // self.num_classes
                boxes.append(box_ops.decode(offsets[level][anchor], part[anchor]))
                scores.append(score)
                labels.append(chosen % self.num_classes)
            return detections(
                jnp.concatenate(boxes),
                jnp.concatenate(scores),
                jnp.concatenate(labels),
                size,
                self.score_threshold,
                self.overlap,
                self.num_detections,
                least_side=0.0,
            )

        return jax.vmap(of_image)(logits, offsets, sizes)

    def losses(
        self,
        images: jax.Array,
        boxes: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
        sizes: jax.Array | None = None,
        train: bool = False,
    ) -> Losses:
        """See `FasterRCNN.losses`; nothing is drawn, and padding is treated as background."""
        logits, offsets, anchors = self._outputs(images, train)
        of_image = partial(self._image_losses, anchors=jnp.concatenate(anchors))
        return jax.vmap(of_image)(jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1), boxes, labels)

    def _outputs(self, images: jax.Array, train: bool) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Of each map logits [B, A, classes], offsets [B, A, 4] and anchors [A, 4]."""
        maps = sown(self, self.backbone(images, train))
        wide = at_least_float32(images)
        logits = [self.cls_logits(self.classification_head(x)) for x in maps]
        offsets = [self.bbox_reg(self.regression_head(x)) for x in maps]
        batch, count = images.shape[0], len(self.anchors[0]) * len(self.ratios)
        cells = [x.shape[1] * x.shape[2] * count for x in maps]
        return (
            [x.reshape(batch, n, self.num_classes).astype(wide) for x, n in zip(logits, cells, strict=True)],
            [x.reshape(batch, n, 4).astype(wide) for x, n in zip(offsets, cells, strict=True)],
            map_anchors(self.anchors, self.ratios, maps, images),
        )

    def _image_losses(
        self, logits: jax.Array, offsets: jax.Array, boxes: jax.Array, labels: jax.Array, anchors: jax.Array
    ) -> Losses:
        overlap = jnp.where((labels >= 0)[:, None], box_ops.iou(boxes[:, None], anchors), 0)
        found = box_ops.match(overlap, *self.anchor_overlaps, rescue=True)
        positive, box = found >= 0, jnp.maximum(found, 0)
        target = positive[:, None] * jax.nn.one_hot(labels[box], self.num_classes)
        losses = focal(logits, target, self.alpha, self.gamma).sum(axis=-1)
        if self.box_loss == "l1":
            errors = jnp.abs(offsets - box_ops.encode(boxes[box], anchors)).sum(axis=-1)
        else:
            errors = 1 - box_ops.giou(box_ops.decode(offsets, anchors), boxes[box])
        count, one = jnp.maximum(jnp.sum(positive), 1), jnp.ones((), jnp.float32)
        return {
            "classifier": (jnp.sum(jnp.where(found != box_ops.BETWEEN, losses, 0)) / count, one),
            "box": (jnp.sum(jnp.where(positive, errors, 0)) / count, one),
        }


def focal(logits: jax.Array, target: jax.Array, alpha: float, gamma: float) -> jax.Array:
    """The focal loss of targets 0 or 1, elementwise (Lin et al. 2017, equation 5)."""
    entropy = jax.nn.softplus(logits) - target * logits
    wrong = jnp.where(target > 0, jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
    return jnp.where(target > 0, alpha, 1 - alpha) * wrong**gamma * entropy


register(
    "retinanet_resnet50_fpn",
    family="cnn",
    input_shape=(800, 800, 3),
    paper="Lin et al. 2017, Focal loss for dense object detection, arXiv:1708.02002",
)(RetinaNet)
