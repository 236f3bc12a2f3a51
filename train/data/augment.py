"""Augmentation of images inside the step: pure functions, one key an example.

An example's key is folded from the step's key and its row in the global batch, so that the result does not depend on
the layout of the batch on devices. Only mixing combines two examples: each with the one before it in the batch.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from train.data.randaugment import rand_augment
from train.data.warp import affine
from zoo.errors import ZooError

MIXING = 2**31 - 1  # folded into the step's key for mixing; an example's own key has its row


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    crop_area: float | None = None  # least part of the image that a random crop shows, scaled back (ImageNet: 0.08)
    shift: int = 0  # pixels, each way: a random crop of the image padded by `pad`
    pad: Literal["zeros", "reflect"] = "zeros"  # the border that a shift exposes: zeros, or the image mirrored
    flip: bool = False  # left and right, every second time
    rotate: float = 0.0  # degrees, each way
    scale: float = 0.0  # 0.1: sizes from 90 to 110 %
    rand_layers: int = 0  # RandAugment: operations an image
    rand_magnitude: int = 9  # RandAugment: how strong, 0 to 30
    cutout: int = 0  # side of a square of zeros, in pixels
    mixup: float = 0.0  # alpha of the beta distribution of the share of the example before it in the batch
    cutmix: float = 0.0  # the same for a pasted box; with mixup too, each has half of the steps

    def check(self) -> None:
        """ZooError for a value out of range."""
        for name in ("shift", "rand_layers", "cutout", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ZooError(f"task.augment.{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.rotate <= 180:
            raise ZooError(f"task.augment.rotate must be between 0 and 180 degrees, not {self.rotate}")
        if not 0 <= self.scale < 1:
            raise ZooError(f"task.augment.scale must be in [0, 1), not {self.scale}")
        if not 0 <= self.rand_magnitude <= 30:
            raise ZooError(f"task.augment.rand-magnitude must be between 0 and 30, not {self.rand_magnitude}")
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ZooError(f"task.augment.crop-area must be in (0, 1], not {self.crop_area}")
        if self.pad not in ("zeros", "reflect"):
            raise ZooError(f"task.augment.pad must be zeros or reflect, not {self.pad!r}")

    @property
    def mixes(self) -> bool:
        """Whether an example's picture depends on another's."""
        return self.mixup > 0 or self.cutmix > 0


def augmented(
    config: AugmentConfig, key: jax.Array, batch: Mapping[str, jax.Array], target: str
) -> dict[str, jax.Array]:
    """A training batch with `image` augmented, uint8 to float32 of 0 to 255.

    Where examples are mixed, `share` [B] is what remains of an example, and `other_` + `target` [B, ...] the target of
    the rest.
    """
    if config == AugmentConfig():
        return dict(batch)
    images = augment(config, key, batch["image"].astype(jnp.float32), batch["row"])
    if not config.mixes:
        return {**batch, "image": images}
    images, share = mix(config, jax.random.fold_in(key, MIXING), images)
    others = jnp.roll(batch[target], 1, axis=0)
    return {**batch, "image": images, f"other_{target}": others, "share": jnp.full(len(images), share)}


def augment(config: AugmentConfig, key: jax.Array, images: jax.Array, rows: jax.Array) -> jax.Array:
    """Augments float32 images [B, H, W, C] of 0 to 255; `rows` [B] are their places in the global batch."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
    return jax.vmap(partial(_augment_one, config))(keys, images)


def _augment_one(config: AugmentConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    affine_key, shift_key, flip_key, crop_key, rand_key, cut_key = jax.random.split(key, 6)
    if config.crop_area is not None:
        image = random_resized_crop(crop_key, image, config.crop_area)
    if config.rotate or config.scale:
        angle, size = jax.random.uniform(affine_key, (2,), minval=-1, maxval=1)
        angle, size = jnp.deg2rad(config.rotate) * angle, 1 + config.scale * size
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        image = affine(image, turn / size)
    if config.shift:
        start = jax.random.randint(shift_key, (2,), 0, 2 * config.shift + 1)
        pad = (config.shift, config.shift)
        padded = jnp.pad(image, (pad, pad, (0, 0)), mode="reflect" if config.pad == "reflect" else "constant")
        image = jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)
    if config.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if config.rand_layers:
        image = rand_augment(rand_key, image, config.rand_layers, config.rand_magnitude)
    if config.cutout:
        centre = jax.random.uniform(cut_key, (2,)) * jnp.array(image.shape[:2])
        image = jnp.where(box(image.shape[:2], centre, jnp.full(2, config.cutout)), 0.0, image)
    return image


def random_resized_crop(key: jax.Array, image: jax.Array, least: float) -> jax.Array:
    """A random part of `least` to all of the area, 3:4 to 4:3, scaled to the image's size (Szegedy et al. 2015)."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, minval=least, maxval=1.0)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    sides = jnp.minimum(jnp.sqrt(area * jnp.array([1 / ratio, ratio])), 1.0)  # of height and width
    corner = jax.random.uniform(place_key, (2,)) * (1 - sides)
    shape = jnp.array(image.shape[:2])
    scale = 1 / sides
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -corner * shape * scale, method="linear", antialias=True
    )


def box(shape: tuple[int, ...], centre: jax.Array, sides: jax.Array) -> jax.Array:
    """True [H, W, 1] inside a box of `sides` about `centre` (rows, columns), cut at the image's border."""
    low, high = jnp.round(centre - sides / 2), jnp.round(centre - sides / 2) + sides
    rows, columns = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    return (rows >= low[0]) & (rows < high[0]) & (columns >= low[1]) & (columns < high[1])


def mix(config: AugmentConfig, key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each image of the global batch [B, H, W, C] mixed with the one before it, and the share [] that is its own.

    Mixup (Zhang et al. 2018) adds, CutMix (Yun et al. 2019) pastes a box; one draw a step.
    """
    which_key, share_key, place_key = jax.random.split(key, 3)
    others = jnp.roll(images, 1, axis=0)
    cuts = config.cutmix > 0 if 0 in (config.mixup, config.cutmix) else jax.random.bernoulli(which_key)
    alpha = jnp.where(cuts, config.cutmix, config.mixup)
    share = jax.random.beta(share_key, alpha, alpha)
    shape = images.shape[1:3]
    centre = jax.random.uniform(place_key, (2,)) * jnp.array(shape)
    inside = box(shape, centre, jnp.round(jnp.sqrt(1 - share) * jnp.array(shape)))
    pasted = jnp.where(inside, others, images)
    blended = share * images + (1 - share) * others
    return jnp.where(cuts, pasted, blended), jnp.where(cuts, 1 - jnp.mean(inside), share)
