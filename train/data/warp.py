"""Images moved by a linear map, inside the step."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def affine(image: jax.Array, matrix: jax.Array, shift: jax.Array | float = 0.0) -> jax.Array:
    """An image [H, W, C] whose pixel p shows what was at matrix @ p + shift, about the centre, sampled bilinearly.

    p is (row, column), `matrix` [2, 2], `shift` [2] in pixels; zeros come in from outside.
    """
    height, width, _ = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1) - centre
    rows, columns = jnp.moveaxis(places @ matrix.T + shift + centre, -1, 0)
    return jax.vmap(lambda plane: map_coordinates(plane, [rows, columns], order=1), -1, -1)(image)
