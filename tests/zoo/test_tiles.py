"""Tiles: they cover an image of any size, put together they are the image, and what they predict is the whole's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.tiles import starts, tiled, window

IMAGES = np.random.default_rng(0).normal(size=(2, 37, 23, 3)).astype(np.float32)


@pytest.mark.parametrize("side", [5, 8, 9, 20, 100])
def test_tiles_cover_a_side_with_overlap(side):
    places = starts(side, 8)
    assert places[0] == 0
    assert places[-1] == max(side - 8, 0)
    assert (np.diff(places) <= 6).all()
    assert (np.diff(places) > 0).all()


def test_the_weights_of_a_tile_fall_towards_its_sides():
    weights = window(8, 12)[..., 0]
    assert weights.shape == (8, 12)
    assert weights.min() > 0
    assert weights[4, 6] == 1
    assert (weights[0] < weights[2]).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1])


@pytest.mark.parametrize("tile", [(8, 8), (16, 10), (64, 64)])
@pytest.mark.parametrize("margin", [0, 2])
def test_tiles_put_together_are_the_image(tile, margin):
    def inner(tiles):
        assert tiles.shape[1:3] == tile
        return tiles[:, margin : tile[0] - margin, margin : tile[1] - margin]

    found = jax.jit(lambda images: tiled(inner, images, tile, margin))(IMAGES)
    np.testing.assert_allclose(found, IMAGES, atol=1e-5)


def test_tiles_of_a_valid_filter_are_those_of_the_mirrored_whole():
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5, 3, 2)), jnp.float32)

    def filtered(images):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    mirrored = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="symmetric")
    np.testing.assert_allclose(tiled(filtered, IMAGES, (12, 16), 2), filtered(mirrored), atol=1e-4)


def test_a_tile_larger_than_the_image_shows_it_mirrored():
    seen = []

    def shown(tiles):
        jax.debug.callback(lambda array: seen.append(array), tiles)
        return tiles

    jax.block_until_ready(tiled(shown, IMAGES[:, :3, :4], (5, 6)))
    np.testing.assert_array_equal(seen[0][:, 3:, :4], IMAGES[:, 2:0:-1, :4])
