"""Large images by overlapping tiles of one size: the overlap-tile strategy of Ronneberger et al. 2015, section 2."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

OVERLAP = 4  # neighbouring tiles share at least one part in so many of their side


def starts(side: int, tile: int) -> np.ndarray:
    """Where tiles begin that cover `side` pixels, evenly, the last one ending where they end, int32 [n]."""
    count = 1 + max(0, -(-(side - tile) // max(tile - tile // OVERLAP, 1)))
    return np.rint(np.linspace(0, max(side - tile, 0), count)).astype(np.int32)


def window(height: int, width: int) -> np.ndarray:
    """The weight of a tile's pixels, float32 [height, width, 1]: 1 inside, falling towards the sides, above 0."""

    def ramp(side: int) -> np.ndarray:
        place = np.arange(side) + 0.5
        return np.minimum(np.minimum(place, side - place) / max(side // OVERLAP, 1), 1.0)

    return np.outer(ramp(height), ramp(width))[..., None].astype(np.float32)


def tiled(
    apply: Callable[[jax.Array], jax.Array], images: jax.Array, tile: tuple[int, int], margin: int = 0
) -> jax.Array:
    """`apply`, which maps tiles [B, *tile, C] to [B, *tile - 2 margin, K], over whole images [B, H, W, C] of any size.

    The result is float32 [B, H, W, K], in overlaps a weighted mean. Beyond the images' sides tiles show them mirrored.
    The tiles are one loop, so that time and memory of compilation do not grow with the images.
    """
    height, width = images.shape[1:3]
    rows, columns = (side - 2 * margin for side in tile)
    pads = [(margin, margin + max(out - side, 0)) for side, out in ((height, rows), (width, columns))]
    images = jnp.pad(images, ((0, 0), *pads, (0, 0)), mode="symmetric")
    weights = jnp.asarray(window(rows, columns))
    places = np.stack(np.meshgrid(starts(height, rows), starts(width, columns), indexing="ij"), -1).reshape(-1, 2)
    piece = jax.ShapeDtypeStruct((len(images), *tile, images.shape[-1]), images.dtype)
    classes = jax.eval_shape(apply, piece).shape[-1]
    canvas = max(height, rows), max(width, columns)

    def add(totals: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        corner = (0, place[0], place[1], 0)
        shown = jax.lax.dynamic_slice(images, corner, piece.shape)
        total, weight = totals
        found = weights * apply(shown).astype(jnp.float32)
        found += jax.lax.dynamic_slice(total, corner, found.shape)
        near = weights + jax.lax.dynamic_slice(weight, corner[1:], weights.shape)
        return (
            jax.lax.dynamic_update_slice(total, found, corner),
            jax.lax.dynamic_update_slice(weight, near, corner[1:]),
        ), None

    zeros = jnp.zeros((len(images), *canvas, classes)), jnp.zeros((*canvas, 1))
    (total, weight), _ = jax.lax.scan(add, zeros, jnp.asarray(places))
    return (total / weight)[:, :height, :width]
