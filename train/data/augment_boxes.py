"""Augmentation of images with boxes inside the step: pure functions, one key an example, as in `train.data.augment`."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.inputs.detection import FILL
from zoo.ops import boxes as box_ops

LEAST_SEEN = 0.3  # the share of a box's area that must stay in the image
GREY = jnp.array([0.299, 0.587, 0.114])  # of red, green and blue in a pixel's luma


@dataclasses.dataclass(frozen=True)
class BoxAugmentConfig:
    flip: bool = False  # left and right, every second time
    flip_vertical: bool = False  # top and bottom, every second time
    zoom: float = 0.0  # 0.5: sizes from 1 / 1.5 to 1.5 times, at a random place
    colour: float = 0.0  # 0.2: brightness, contrast and saturation from 80 to 120 %

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not 0 <= self.zoom <= 10:
            raise ZooError(f"task.augment.zoom must be between 0 and 10, not {self.zoom}")
        if not 0 <= self.colour <= 1:
            raise ZooError(f"task.augment.colour must be between 0 and 1, not {self.colour}")


def augmented(config: BoxAugmentConfig, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A training batch with `image` (uint8 to float32 of 0 to 255), `boxes` and `size` augmented together; boxes that
    leave the image get the label -1."""
    if config == BoxAugmentConfig():
        return dict(batch)
    keys = jax.vmap(partial(jax.random.fold_in, key))(batch["row"])
    names = ("image", "boxes", "box_label", "size")
    found = jax.vmap(partial(_augment_one, config))(keys, *(batch[name] for name in names))
    return {**batch, **dict(zip(names, found, strict=True))}


def _augment_one(
    config: BoxAugmentConfig, key: jax.Array, image: jax.Array, boxes: jax.Array, labels: jax.Array, size: jax.Array
) -> tuple[jax.Array, ...]:
    zoom_key, place_key, flip_key, colour_key = jax.random.split(key, 4)
    image = image.astype(jnp.float32)
    frame = jnp.array(image.shape[:2], jnp.float32)
    if config.zoom:
        most = jnp.log1p(config.zoom)
        scale = jnp.exp(jax.random.uniform(zoom_key, minval=-most, maxval=most))
        shift = jax.random.uniform(place_key, (2,)) * (frame - size * scale)  # y, x; below 0 where the image is larger
        image = jax.image.scale_and_translate(
            image - FILL, image.shape, (0, 1), jnp.stack([scale, scale]), shift, method="linear", antialias=True
        )
        image = jnp.clip(image + FILL, 0, 255)
        moved = boxes * scale + jnp.tile(shift[::-1], 2)
        boxes = box_ops.clip(moved, frame)
        labels = jnp.where(box_ops.area(boxes) >= LEAST_SEEN * box_ops.area(moved), labels, -1)
        size = frame  # grey beside the image is part of it, from now on
    across, down = jax.random.bernoulli(flip_key, shape=(2,))
    if config.flip:
        turned = size[1] - boxes[:, jnp.array([2, 1, 0, 3])]
        boxes = jnp.where(across, boxes.at[:, 0].set(turned[:, 0]).at[:, 2].set(turned[:, 2]), boxes)
        image = jnp.where(across, _mirrored(image, size[1], axis=1), image)
    if config.flip_vertical:
        turned = size[0] - boxes[:, jnp.array([0, 3, 2, 1])]
        boxes = jnp.where(down, boxes.at[:, 1].set(turned[:, 1]).at[:, 3].set(turned[:, 3]), boxes)
        image = jnp.where(down, _mirrored(image, size[0], axis=0), image)
    if config.colour:
        brightness, contrast, saturation = 1 + config.colour * jax.random.uniform(colour_key, (3,), minval=-1, maxval=1)
        image = image * brightness
        image = (image - image.mean()) * contrast + image.mean()
        if image.shape[-1] == 3:
            grey = (image @ GREY)[..., None]
            image = grey + (image - grey) * saturation
        image = jnp.clip(image, 0, 255)
    return image, boxes, labels, size


def _mirrored(image: jax.Array, length: jax.Array, axis: int) -> jax.Array:
    """The image of which the first `length` rows or columns are in reverse; the rest stays."""
    places = jnp.arange(image.shape[axis])
    inside = places < length
    return jnp.take(image, jnp.where(inside, jnp.round(length).astype(jnp.int32) - 1 - places, places), axis=axis)
