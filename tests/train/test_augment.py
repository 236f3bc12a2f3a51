"""Augmentation is a function of the step's key and the global row, and does what its settings say."""

import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import AugmentConfig, affine, augment

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(1, 255, (32, 12, 12, 3)), jnp.float32)
ROWS = jnp.arange(32)


def test_an_image_depends_on_its_row_not_on_its_neighbours():
    config = AugmentConfig(shift=2, flip=True, rotate=20, scale=0.2)
    whole = augment(config, KEY, IMAGES, ROWS)
    np.testing.assert_allclose(whole[8:16], augment(config, KEY, IMAGES[8:16], ROWS[8:16]), rtol=1e-5, atol=1e-3)
    assert not np.allclose(whole, augment(config, jax.random.key(1), IMAGES, ROWS))


def test_flip_mirrors_about_half():
    out = np.asarray(augment(AugmentConfig(flip=True), KEY, IMAGES, ROWS))
    same, mirrored = ((out == np.asarray(other)).all((1, 2, 3)) for other in (IMAGES, IMAGES[:, :, ::-1]))
    assert (same ^ mirrored).all()
    assert 8 <= mirrored.sum() <= 24


def test_shift_moves_by_whole_pixels_and_pads_with_zeros():
    out = np.asarray(augment(AugmentConfig(shift=2), KEY, IMAGES, ROWS))
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = set()
    for image, source in zip(out, padded, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if (source[i : i + 12, j : j + 12] == image).all()]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 10


def test_affine_maps_turn_and_scale_about_the_centre():
    image = IMAGES[0]
    np.testing.assert_allclose(affine(image, np.pi, 1.0), image[::-1, ::-1], atol=1e-2)
    np.testing.assert_allclose(affine(image, np.pi / 2, 1.0), np.rot90(image, -1), atol=1e-2)
    half = affine(jnp.ones((12, 12, 1)), 0.0, 0.5)[..., 0]
    assert (half[3:9, 3:9] == 1).all()
    assert not half[:3].any()


def test_the_centre_stays():
    bright = jnp.zeros((1, 13, 13, 1)).at[0, 6, 6].set(100.0)
    out = np.asarray(augment(AugmentConfig(scale=0.5, rotate=90), KEY, bright, ROWS[:1]))
    assert out[0, 6, 6, 0] > 99.9


def test_nothing_asked_is_nothing_done():
    np.testing.assert_array_equal(augment(AugmentConfig(), KEY, IMAGES, ROWS), IMAGES)
