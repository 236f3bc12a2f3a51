"""Augmentation is a function of the step's key and the global row, and does what its settings say."""

import jax
import jax.numpy as jnp
import numpy as np

from runs import loss_of
from train.data.augment import AugmentConfig, augment, augmented, mix, random_resized_crop
from train.data.randaugment import OPERATIONS, equalize, operation, rand_augment
from train.data.warp import affine
from train.tasks.classification import Classification
from zoo.inputs.image import ImageInputs

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(1, 255, (32, 12, 12, 3)), jnp.float32)
ROWS = jnp.arange(32)
INPUTS = ImageInputs((12, 12, 3), (0.5,) * 3, (0.5,) * 3, tuple("abcd"))


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


def turn(angle):
    return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])


def test_affine_maps_turn_scale_and_shift_about_the_centre():
    image = IMAGES[0]
    np.testing.assert_allclose(affine(image, turn(np.pi)), image[::-1, ::-1], atol=1e-2)
    np.testing.assert_allclose(affine(image, turn(np.pi / 2)), np.rot90(image, -1), atol=1e-2)
    np.testing.assert_allclose(affine(image, jnp.eye(2), jnp.array([0.0, 3.0]))[:, :9], image[:, 3:], atol=1e-2)
    half = affine(jnp.ones((12, 12, 1)), 2 * jnp.eye(2))[..., 0]
    assert (half[3:9, 3:9] == 1).all()
    assert not half[:3].any()


def test_the_centre_stays():
    bright = jnp.zeros((1, 13, 13, 1)).at[0, 6, 6].set(100.0)
    out = np.asarray(augment(AugmentConfig(scale=0.5, rotate=90), KEY, bright, ROWS[:1]))
    assert out[0, 6, 6, 0] > 99.9


def test_default_settings_change_nothing():
    np.testing.assert_array_equal(augment(AugmentConfig(), KEY, IMAGES, ROWS), IMAGES)


def test_a_shift_can_mirror_the_edge():
    out = np.asarray(augment(AugmentConfig(shift=2, pad="reflect"), KEY, IMAGES, ROWS))
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    for image, source in zip(out, padded, strict=True):
        assert any((source[i : i + 12, j : j + 12] == image).all() for i in range(5) for j in range(5))


def test_cutout_blanks_one_square():
    out = np.asarray(augment(AugmentConfig(cutout=4), KEY, IMAGES, ROWS))
    for image, source in zip(out, np.asarray(IMAGES), strict=True):
        blank = (image == 0).all(-1)
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4  # noqa: PT018
        assert (image[~blank] == source[~blank]).all()


def test_a_random_resized_crop_of_a_ramp_is_a_flatter_ramp():
    """What is seen of a linear ramp is linear, within its range, and the area drawn is at least the least one."""
    ramp = jnp.broadcast_to(jnp.arange(64.0)[None, :, None], (64, 64, 1))
    slopes = []
    for i in range(20):
        crop = np.asarray(random_resized_crop(jax.random.key(i), ramp, 0.25))[..., 0]
        steps = np.diff(crop[32, 4:-4])
        assert np.ptp(steps) < 1e-3
        assert crop.min() >= -0.5
        assert crop.max() <= 63.5
        slopes.append(steps[0])
    assert min(slopes) ** 2 >= 0.25 * 3 / 4
    assert max(slopes) <= 1.001
    assert np.ptp(slopes) > 0.2


def test_mixup_blends_each_image_with_the_one_before_it():
    mixed, share = mix(AugmentConfig(mixup=1.0), KEY, IMAGES)
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * IMAGES + (1 - share) * jnp.roll(IMAGES, 1, 0), rtol=1e-5)


def test_cutmix_pastes_a_box_and_its_share_is_what_is_left():
    shares = set()
    for i in range(20):
        mixed, share = mix(AugmentConfig(cutmix=1.0), jax.random.key(i), IMAGES)
        own = np.asarray(mixed == IMAGES).all(-1)
        assert np.asarray(mixed == jnp.roll(IMAGES, 1, 0)).all(-1)[~own].all()
        np.testing.assert_allclose(share, own[0].mean(), atol=1e-6)
        shares.add(round(float(share), 3))
    assert len(shares) > 10


def test_mixup_and_cutmix_take_turns():
    shares = [mix(AugmentConfig(mixup=1.0, cutmix=1.0), jax.random.key(i), IMAGES) for i in range(20)]
    pasted = [bool(np.asarray((m == IMAGES) | (m == jnp.roll(IMAGES, 1, 0))).all()) for m, _ in shares]
    assert 3 <= sum(pasted) <= 17


def test_rand_augments_operations_do_what_pil_does():
    from PIL import Image, ImageEnhance, ImageOps

    image = np.random.default_rng(3).integers(20, 200, (64, 64, 3)).astype(np.uint8)
    picture, strength = Image.fromarray(image), 0.5
    expected = {
        "identity": picture,
        "autocontrast": ImageOps.autocontrast(picture),
        "solarize": ImageOps.solarize(picture, 128),
        "posterize": ImageOps.posterize(picture, 6),
        "saturation": ImageEnhance.Color(picture).enhance(1.45),
        "contrast": ImageEnhance.Contrast(picture).enhance(1.45),
        "brightness": ImageEnhance.Brightness(picture).enhance(1.45),
        "sharpness": ImageEnhance.Sharpness(picture).enhance(1.45),
    }
    for name, picture_after in expected.items():
        ours = operation(jnp.asarray(image, jnp.float32), OPERATIONS.index(name), strength)
        np.testing.assert_allclose(ours, np.asarray(picture_after, np.float32), atol=2.0, err_msg=name)  # PIL rounds
    ours = np.asarray(equalize(jnp.asarray(image, jnp.float32)))
    np.testing.assert_allclose(ours, np.asarray(ImageOps.equalize(picture), np.float32), atol=2.0)


def test_rand_augments_geometry_is_signed_and_the_right_way():
    dot = jnp.zeros((31, 31, 1)).at[15, 20, 0].set(255.0)

    def where(name, strength):
        out = np.asarray(operation(dot, OPERATIONS.index(name), strength))[..., 0]
        return np.unravel_index(out.argmax(), out.shape)

    assert where("translate_x", 0.2) == (15, 17)  # 0.2 * 150 / 331 * 31 pixels
    assert where("translate_x", -0.2) == (15, 23)
    assert where("translate_y", 0.2) == (12, 20)
    assert where("rotate", 1.0) != where("rotate", -1.0)
    assert where("shear_x", 1.0) == (15, 20)  # on the middle row, which a shear along the rows leaves in place
    assert where("shear_y", 1.0)[0] != 15


def test_rand_augment_draws_every_operation_and_stays_in_range():
    key = jax.random.split(KEY, 200)
    out = np.asarray(jax.jit(jax.vmap(lambda k: rand_augment(k, IMAGES[0], 1, 15)))(key))
    assert out.min() >= 0
    assert out.max() <= 255.01
    assert len(np.unique(out.mean((1, 2, 3)).round(2))) >= 20  # 13 operations, two signs for 9 of them


def test_mixed_examples_share_their_loss_between_both_labels():
    task, labels = Classification(), jnp.array([0, 1, 2])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    batch = {"image": IMAGES[:3], "label": labels, "weight": jnp.ones(3)}

    def loss(**changes):
        return loss_of(task, INPUTS, logits, {**batch, **changes}, train=True).total

    others = jnp.roll(labels, 1)
    mixed = loss(other_label=others, share=jnp.full(3, 0.3))
    np.testing.assert_allclose(mixed, 0.3 * loss() + 0.7 * loss(label=others), rtol=1e-6)


def test_a_mixed_batch_has_the_other_label_and_the_share_of_its_own():
    images = IMAGES.astype(jnp.uint8)
    batch = {"image": images, "label": jnp.arange(32), "row": ROWS, "weight": jnp.ones(32)}
    mixed = augmented(AugmentConfig(mixup=1.0), KEY, batch, "label")
    share = mixed["share"][:, None, None, None]
    expected = share * images + (1 - share) * images[mixed["other_label"]]  # labels are places here
    np.testing.assert_allclose(mixed["image"], expected, rtol=1e-5)
    assert 0 < mixed["share"][0] < 1
    assert (mixed["label"] == jnp.arange(32)).all()
