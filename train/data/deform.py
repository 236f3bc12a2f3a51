"""Random pieces of images with their masks, deformed inside the step: pure functions, one key an example.

An example's key is folded from the step's key and its row in the global batch, as in `train.data.augment`. Image and
mask are sampled once, at the same places: the image linearly, masks at the nearest pixel; beyond the sides they are
mirrored.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from zoo.errors import ZooError


@dataclasses.dataclass(frozen=True)
class DeformConfig:
    flip: bool = False  # left and right, every second time
    turn: bool = False  # by 0, 90, 180 or 270 degrees
    rotate: float = 0.0  # degrees, each way
    scale: float = 0.0  # 0.1: sizes from 90 to 110 %
    # pixels: the deviation of the random displacements of points on a coarse grid, between which they are interpolated
    # (elastic deformation; Ronneberger et al. 2015: 10)
    elastic: float = 0.0
    spacing: int = 64  # pixels between these points
    contrast: float = 0.0  # 0.1: 90 to 110 %, about the piece's mean
    brightness: float = 0.0  # 0.1: up to 10 % of the full range, each way

    def check(self) -> None:
        """ZooError for a value out of range."""
        if not 0 <= self.rotate <= 180:
            raise ZooError(f"task.augment.rotate must be between 0 and 180 degrees, not {self.rotate}")
        for name in ("scale", "contrast", "brightness"):
            if not 0 <= getattr(self, name) < 1:
                raise ZooError(f"task.augment.{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.elastic < 1e4:
            raise ZooError(f"task.augment.elastic must be at least 0 pixels and below 10,000, not {self.elastic}")
        if self.spacing < 2:
            raise ZooError(f"task.augment.spacing must be at least 2 pixels, not {self.spacing}")


def pieces(
    config: DeformConfig, key: jax.Array, batch: Mapping[str, jax.Array], tile: tuple[int, int], margin: int
) -> dict[str, jax.Array]:
    """A training batch with a piece of each example: `image` float32 [B, *tile, C] of 0 to 255, `mask` and, where there
    is one, `border` [B, *tile - 2 margin]: the middle of what `image` shows, anywhere in the example."""
    maps = {name: batch[name] for name in ("mask", "border") if name in batch}
    keys = jax.vmap(partial(jax.random.fold_in, key))(batch["row"])
    images, maps = jax.vmap(partial(_piece, config, tile, margin))(keys, batch["image"], maps)
    return {**batch, "image": images, **maps}


def _piece(
    config: DeformConfig,
    tile: tuple[int, int],
    margin: int,
    key: jax.Array,
    image: jax.Array,
    maps: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    place_key, turn_key, elastic_key, light_key = jax.random.split(key, 4)
    inner = jnp.array(tile) - 2 * margin
    start = jax.random.randint(place_key, (2,), 0, jnp.array(image.shape[:2]) - inner + 1)
    places = jnp.stack(jnp.meshgrid(*(jnp.arange(side) - (side - 1) / 2 for side in tile), indexing="ij"), axis=-1)
    places = places @ turning(config, turn_key).T
    if config.elastic:
        points = [-(-side // config.spacing) + 1 for side in tile]
        moves = config.elastic * jax.random.normal(elastic_key, (*points, 2))
        places += jax.image.resize(moves, (*tile, 2), "cubic")
    rows, columns = jnp.moveaxis(places + start + (inner - 1) / 2, -1, 0)
    sampled = partial(map_coordinates, mode="reflect")  # SciPy's name: the pixel at the side is repeated
    planes = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    found = jnp.stack([sampled(plane, [rows, columns], order=1) for plane in planes], axis=-1)
    cut = slice(margin, -margin or None)
    near = [rows[cut, cut], columns[cut, cut]]
    return lit(config, light_key, found), {name: sampled(array, near, order=0) for name, array in maps.items()}


def turning(config: DeformConfig, key: jax.Array) -> jax.Array:
    """The linear map [2, 2] from a piece's (row, column), about its centre, to the image's."""
    flip_key, turn_key, more_key = jax.random.split(key, 3)
    angle, size = jax.random.uniform(more_key, (2,), minval=-1, maxval=1)
    angle, size = jnp.deg2rad(config.rotate) * angle, 1 + config.scale * size
    matrix = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) / size
    if config.turn:
        quarter = jnp.array([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]], jnp.float32)
        matrix = matrix @ quarter[jax.random.randint(turn_key, (), 0, 4)]
    if config.flip:
        matrix = matrix @ jnp.diag(jnp.array([1.0, jax.random.rademacher(flip_key, (), jnp.float32)]))
    return matrix


def lit(config: DeformConfig, key: jax.Array, image: jax.Array) -> jax.Array:
    """A piece [H, W, C] of 0 to 255 with random contrast and brightness."""
    if not config.contrast and not config.brightness:
        return image
    contrast, brightness = jax.random.uniform(key, (2,), minval=-1, maxval=1)
    mean = jnp.mean(image)
    image = mean + (image - mean) * (1 + config.contrast * contrast) + 255 * config.brightness * brightness
    return jnp.clip(image, 0, 255)
