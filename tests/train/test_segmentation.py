"""Segmentation: folders and sets of masks, deformation of both together, losses, metrics, a run to its end."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import train
import zoo
from train.__main__ import main
from train.data.borders import border_distances
from train.data.deform import pieces
from train.forward import Forward
from train.tasks.segmentation import overlaps, rand_error, rand_score
from zoo.inputs import SegmentationInputs
from zoo.segmenter import Segmenter

KEY = jax.random.key(0)


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.save(path)
    return path


def photos(folder, n=4, side=16, values=(0, 1), mode=None):
    """Discs (the second value) on a dark ground (the first), with their masks."""
    rng = np.random.default_rng(n)
    rows, columns = np.mgrid[:side, :side]
    for i in range(n):
        centre = rng.uniform(4, side - 4, 2)
        inside = np.hypot(rows - centre[0], columns - centre[1]) < 4
        save(folder / "images" / f"{i}.png", 60 + 120 * inside + rng.integers(0, 20, inside.shape))
        save(folder / "masks" / f"{i}.png", np.where(inside, values[1], values[0]), mode)
    return folder


def load(folder, **settings):
    return train.SegmentationData(path=str(folder), validation_fraction=0.0, **settings).load((8, 8, 1))


# The source.


@pytest.mark.parametrize(
    ("values", "labels"), [((0, 1), ("0", "1")), ((0, 255), ("0", "255")), ((3, 7), ("3", "7")), ((7, 255), None)]
)
def test_grey_masks_have_their_values_as_classes(values, labels, tmp_path):
    photos(tmp_path, values=values)
    if labels is None:  # one class, and pixels that are not counted
        with pytest.raises(zoo.ZooError, match="needs 2 to 255 classes of pixels; it has 1"):
            load(tmp_path)
        return
    dataset = load(tmp_path)
    assert dataset.inputs.labels == labels
    assert dataset.inputs.shape == (8, 8, 1)
    with Image.open(tmp_path / "masks" / "2.png") as image:
        np.testing.assert_array_equal(dataset.train.arrays["mask"][2], np.asarray(image) == values[1])
    assert dataset.notes == (f"{tmp_path.name}: the classes are the masks' values {', '.join(labels)}",)


def test_splits_names_palettes_and_pixels_that_are_not_counted(tmp_path):
    for split, n in (("train", 4), ("val", 3), ("Test", 2)):
        photos(tmp_path / split, n, mode="P")
    (tmp_path / "classes.txt").write_text("ground\ndisc\nnever\n")
    mask = np.array(Image.open(tmp_path / "train/masks/0.png"))
    mask[:3] = 255
    Image.fromarray(mask).save(tmp_path / "train/masks/0.png")
    dataset = load(tmp_path)
    assert dataset.inputs.labels == ("ground", "disc", "never")
    assert [split.size for split in (dataset.train, dataset.validation, dataset.test)] == [4, 3, 2]
    assert (dataset.train.arrays["mask"][0][:3] == 255).all()
    assert dataset.train.arrays["mask"].dtype == np.uint8


def test_one_file_a_class(tmp_path):
    photos(tmp_path)
    for name in ("left", "right"):
        (tmp_path / "masks" / name).mkdir()
    for i in range(4):
        (tmp_path / "masks" / f"{i}.png").unlink()
        half = np.zeros((16, 16))
        half[:, :5] = 9
        save(tmp_path / "masks" / "left" / f"{i}.png", half)
        if i:  # the first image has none of the other class
            save(tmp_path / "masks" / "right" / f"{i}.png", half[:, ::-1])
    dataset = load(tmp_path)
    assert dataset.inputs.labels == ("background", "left", "right")
    masks = dataset.train.arrays["mask"]
    assert [np.unique(mask).tolist() for mask in masks[:2]] == [[0, 1], [0, 1, 2]]
    assert (masks[1][:, 11:] == 2).all()
    save(tmp_path / "masks" / "right" / "2.png", half)
    with pytest.raises(zoo.ZooError, match=r"right/2\.png' has pixels that another class's mask has too"):
        load(tmp_path)


def test_images_of_different_sizes_are_filled_up(tmp_path):
    photos(tmp_path)
    save(tmp_path / "images/small.png", np.full((5, 20), 77))
    save(tmp_path / "masks/small.png", np.ones((5, 20)))
    arrays = load(tmp_path).train.arrays
    assert arrays["image"].shape == (5, 16, 20, 1)
    assert (arrays["image"][4] == 77).all()
    assert (arrays["mask"][4][:5] == 1).all()
    assert (arrays["mask"][4][5:] == 255).all()


def test_large_sets_are_read_when_asked(tmp_path, monkeypatch):
    photos(tmp_path)
    kept = load(tmp_path, borders=True)
    monkeypatch.setattr("train.data.segmentation.IN_MEMORY_BYTES", 1000)
    lazy = load(tmp_path, borders=True)
    assert (kept.train.in_memory, lazy.train.in_memory) == (True, False)
    for name, array in kept.train.read(np.array([2, 0])).items():
        np.testing.assert_array_equal(lazy.train.read(np.array([2, 0]))[name], array)
    assert {*array_names(kept)} == {"image", "mask", "border"}


def array_names(dataset):
    return dataset.train.read(np.zeros(1, int))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: save(f / "masks/1.png", np.zeros((16, 15))), r"1\.png' has 16 x 15 pixels; its image 16 x 16"),
        (lambda f: (f / "masks/1.png").unlink(), r"images/1\.png' has no mask"),
        (lambda f: save(f / "masks/1.png", np.zeros((16, 16, 3))), r"1\.png' is a mask of colours \(RGB\)"),
        (lambda f: (f / "masks/1.png").write_bytes(b"x"), r"masks/1\.png' is not a readable image"),
        (lambda f: (f / "images/1.png").write_bytes(b"x"), r"images/1\.png' is not a readable image"),
        (lambda f: (f / "classes.txt").write_text(""), r"classes\.txt' must name the classes"),
        (lambda f: (f / "classes.txt").write_text("a\na\n"), r"classes\.txt' must name the classes, each once"),
        (lambda f: (f / "classes.txt").write_text("a\n"), "needs 2 to 255 classes of pixels; it has 1"),
        (
            lambda f: (
                save(f / "masks/1.png", np.full((16, 16), 300 % 256)) and (f / "classes.txt").write_text("a\nb\n")
            ),
            r"1\.png' has the value 44, which is no class: those are 0, 1; 255 is not counted",
        ),
        (
            lambda f: save(f / "masks/1.png", np.arange(256).reshape(16, 16)),
            r"have 255 values; name those that are classes in classes\.txt",
        ),
        (lambda f: (f / "images").rename(f / "photos"), "needs the folders images and masks"),
        (lambda f: save(f / "masks/cat/1.png", np.zeros((16, 16))), "has folders of masks, one a class"),
    ],
)
def test_bad_masks_are_refused_with_the_files_name(spoil, message, tmp_path):
    photos(tmp_path)
    spoil(tmp_path)
    with pytest.raises(zoo.ZooError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_held_out_value_that_training_has_not_is_refused(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", values=(0, 2))
    with pytest.raises(zoo.ZooError, match=r"test/masks/0\.png' has the value 2, which is no class: those are 0, 1"):
        load(tmp_path)


def test_classes_are_matched_by_name_to_those_of_a_run(tmp_path):
    (photos(tmp_path) / "classes.txt").write_text("ground\ndisc\n")
    own = load(tmp_path)
    known = dataclasses.replace(own.inputs, labels=("disc", "other", "ground"))
    data = train.SegmentationData(path=str(tmp_path), validation_fraction=0.0)
    found = data.load((8, 8, 1), known)
    assert found.inputs == known
    np.testing.assert_array_equal(found.train.arrays["mask"], np.array([2, 0])[own.train.arrays["mask"]])
    with pytest.raises(zoo.ZooError, match="has 1 labels that the model does not have"):
        data.load((8, 8, 1), dataclasses.replace(own.inputs, labels=("disc", "sky")))


def made(folder, mask_feature, masks, names=None):
    """Writes the TFDS set `sections`: grey images of a mask's size and the masks, all in the split train."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    root, prefix = folder / "sections" / "1.0.0", "tensorflow_datasets.core.features."
    root.mkdir(parents=True)
    image = {"dtype": "uint8", "shape": {"dimensions": ["6", "8", "1"]}}
    features = {
        "image": {"image": image, "pythonClassName": f"{prefix}image_feature.Image"},
        "segmentation_mask": {"image": {**image, **mask_feature}, "pythonClassName": f"{prefix}{CLASSES[bool(names)]}"},
    }
    about = {"featuresDict": {"features": features}, "pythonClassName": f"{prefix}features_dict.FeaturesDict"}
    (root / "features.json").write_text(json.dumps(about))
    if names:
        (root / "segmentation_mask.labels.txt").write_text("\n".join(names) + "\n")
    writer = ArrayRecordWriter(str(root / "sections-train.array_record-00000-of-00001"), "group_size:1")
    for mask in masks:
        example = tf_example_pb2.Example()
        for feature, pixels in (("image", 255 - mask), ("segmentation_mask", mask)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            example.features.feature[feature].bytes_list.value.append(file.getvalue())
        writer.write(example.SerializeToString())
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"filepathTemplate": template, "name": "train", "numBytes": "9", "shardLengths": [str(len(masks))]}
    described = {"fileFormat": "array_record", "moduleName": "own", "name": "sections", "version": "1.0.0"}
    (root / "dataset_info.json").write_text(json.dumps({**described, "splits": [split]}))
    return train.SegmentationData("sections", dir=str(folder), validation_fraction=0.25)


CLASSES = ("image_feature.Image", "labeled_image.LabeledImage")


def test_sets_of_tfds_with_and_without_names(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (4, 6, 8), np.uint8)
    data = made(tmp_path / "a", {"label": {"numClasses": "2"}, "useColormap": True}, masks, ["wall", "cell"])
    dataset = data.load((6, 8, 1))
    assert (dataset.inputs.labels, dataset.notes) == (("wall", "cell"), ())
    np.testing.assert_array_equal(dataset.train.arrays["mask"], masks[:3])
    np.testing.assert_array_equal(dataset.validation.arrays["image"][..., 0], 255 - masks[3:])
    unnamed = made(tmp_path / "b", {}, masks + np.uint8(1)).load((6, 8, 1))  # as of Oxford's pets: from 1
    assert unnamed.inputs.labels == ("1", "2")
    np.testing.assert_array_equal(unnamed.train.arrays["mask"], masks[:3])
    masks[2, 0, 0] = 7
    wrong = made(tmp_path / "c", {"label": {"numClasses": "2"}, "useColormap": True}, masks, ["wall", "cell"])
    with pytest.raises(zoo.ZooError, match="sections, split train, example 2 has the value 7, which is no class"):
        wrong.load((6, 8, 1))


def test_distances_to_the_two_nearest_objects():
    mask = np.zeros((9, 12), np.uint8)
    mask[2:7, 1:3], mask[3:6, 6:9], mask[0, 11] = 1, 2, 255
    found = border_distances(mask)
    pixels = [np.argwhere(mask == number) for number in (1, 2)]
    for row, column in np.ndindex(mask.shape):
        distances = [np.hypot(*(part - (row, column)).T).min() for part in pixels]
        assert found[row, column] == round(sum(distances))
    assert (border_distances(np.zeros((4, 4), np.uint8)) == 255).all()


# Deformation.

GRID = np.stack(np.meshgrid(np.arange(24), np.arange(32), indexing="ij"), -1).astype(np.uint8) * 4
BATCH = {"image": np.stack([GRID] * 6), "mask": np.stack([GRID.sum(-1)] * 6), "row": np.arange(6, dtype=np.int32)}


@pytest.mark.parametrize("settings", [{}, {"flip": True, "turn": True}])
@pytest.mark.parametrize("margin", [0, 2])
def test_pieces_are_parts_of_the_image_and_masks_lie_in_their_middle(settings, margin):
    found = pieces(train.DeformConfig(**settings), KEY, BATCH, (12, 12), margin)
    assert found["image"].shape == (6, 12, 12, 2)
    inner = np.asarray(found["image"])[:, margin : 12 - margin, margin : 12 - margin]
    np.testing.assert_array_equal(found["mask"], inner.sum(-1))
    steps = np.abs(np.diff(inner, axis=1)).sum(-1)
    assert (steps == 4).all()  # the next row is the next row or column of the image
    assert len({image.tobytes() for image in np.asarray(found["image"])}) == 6
    turned = np.diff(inner[..., 0], axis=1).any(axis=(1, 2))  # of which rows are still rows
    assert turned.all() or settings


def test_image_and_mask_are_deformed_together():
    config = train.DeformConfig(rotate=30, scale=0.2, elastic=2, spacing=6, flip=True, turn=True)
    found = pieces(config, KEY, BATCH, (12, 12), 0)
    image, mask = np.asarray(found["image"]), np.asarray(found["mask"], float)
    assert np.abs(image.sum(-1) - mask).max() <= 4.1  # the nearest pixel is half a pixel away at most, each way
    assert np.abs(image.sum(-1) - mask).mean() > 0.2
    plain = pieces(dataclasses.replace(config, elastic=0.0), KEY, BATCH, (12, 12), 0)
    assert 0.5 < np.abs(np.asarray(plain["image"]) - image).mean() < 4 * 2 * 4


def test_a_piece_depends_on_its_row_alone():
    config = train.DeformConfig(flip=True, turn=True, elastic=1, contrast=0.1, brightness=0.1)
    half = pieces(config, KEY, {name: array[3:] for name, array in BATCH.items()}, (8, 8), 0)
    whole = pieces(config, KEY, BATCH, (8, 8), 0)
    np.testing.assert_allclose(half["image"], whole["image"][3:], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(half["mask"], whole["mask"][3:])


# Loss and metrics.


class Given:
    """A forward pass whose logits are the images."""

    model = None

    class inputs:
        shape = (2, 3, 2)
        arguments = staticmethod(lambda batch: ((batch["image"],), {}))

    def __call__(self, x, train=False):
        return jnp.asarray(x, jnp.float32)


def test_the_loss_and_the_confusion_are_those_of_the_counted_pixels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, 3, 2)).astype(np.float32)
    mask = np.array([[[0, 1, 255], [1, 0, 1]], [[0, 0, 0], [255, 1, 1]]], np.uint8)
    border = rng.integers(0, 9, mask.shape).astype(np.uint8)
    batch = {"image": logits, "mask": mask, "border": border, "weight": np.array([1, 0], np.float32)}
    task = train.Segmentation(cross_entropy=2.0, dice=3.0, border_weight=4.0, class_weights={"wall": 5.0})
    extra = train.Extra(constants={"class_weights": np.array([1.0, 5.0], np.float32)})
    loss = task.loss(Given(), batch, extra, None, train=True)
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    counted = mask[0] < 2
    labels = mask[0][counted]
    weights = np.array([1, 5])[labels] * (1 + 4 * np.exp(-(border[0][counted].astype(float) ** 2) / 50))
    entropy = -np.log(probabilities[counted][np.arange(5), labels])
    dice = [
        (2 * probabilities[counted][labels == c, c].sum() + 1)
        / (probabilities[counted][:, c].sum() + (labels == c).sum() + 1)
        for c in (0, 1)
    ]
    expected = 2 * (entropy * weights).sum() / weights.sum() + 3 * (1 - np.mean(dice))
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert float(loss.count) == 1
    found = np.asarray(loss.sums["confusion"])
    assert found.sum() == 5
    for label, prediction in np.ndindex(2, 2):
        right = (labels == label) & (logits[0][counted].argmax(-1) == prediction)
        assert found[label, prediction] == right.sum()
    plain = task.loss(Given(), batch, train.Extra(), None, train=False)
    assert float(plain.total) == pytest.approx(2 * entropy.mean() + 3 * (1 - np.mean(dice)), rel=1e-5)


def test_metrics_of_a_confusion_matrix():
    confusion = np.array([[6.0, 2, 0], [1, 3, 0], [0, 0, 0]])
    iou, dice = overlaps(confusion)
    np.testing.assert_allclose(iou, [6 / 9, 3 / 6, np.nan])
    np.testing.assert_allclose(dice, [12 / 15, 6 / 9, np.nan])
    metrics = train.Segmentation().metrics({"loss": 6.0, "count": 2.0, "confusion": confusion})
    assert metrics["pixel_error"] == pytest.approx(3 / 12)
    assert metrics["mean_iou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert train.Segmentation().score(metrics) == metrics["mean_iou"]


def test_the_rand_score_counts_pairs_of_pixels():
    actual = np.array([[1, 1, 1, 2, 2, 0]])
    assert rand_score(actual, actual) == 1.0
    assert rand_score(np.array([[5, 5, 5, 5, 5, 5]]), actual) == pytest.approx(2 * 13 / (13 + 25))
    assert rand_score(np.array([[0, 0, 0, 0, 0, 0]]), actual) == pytest.approx(2 * 5 / (13 + 5))
    assert rand_score(np.array([[1, 2, 2, 3, 3, 9]]), actual) == pytest.approx(2 * 9 / (13 + 9))


def test_the_rand_error_is_that_of_the_best_threshold():
    mask = np.ones((1, 5, 9), np.uint8)
    mask[:, :, 4] = 0
    objects = np.where(mask, 0.9, 0.45).astype(float)
    objects[:, 0, 1] = 0.55
    assert rand_error(objects, mask) == pytest.approx(0)
    objects[:, 2, 4] = 0.95  # a leak that no threshold closes without losing the objects
    assert rand_error(objects, mask) > 0.3


# Runs.


def config_of(folder, workdir, **changes):
    settings = {
        "steps": 60, "batch_size": 4, "eval_every": 30, "model": train.ModelConfig("unet_small", {"widths": (4, 8)}),
        "data": train.SegmentationData(path=str(folder), tile=12, borders=True),
        "task": train.Segmentation(rand=True, border_weight=1.0, augment=train.DeformConfig(flip=True, elastic=1)),
        "optimizer": train.OptimizerConfig("adam", 1e-2, schedule="constant"), "parallel": "jit",
        "log": train.LogConfig(every=10, tensorboard=False),
    }  # fmt: skip
    return train.Config(str(workdir), **{**settings, **changes})


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    for split, n in (("train", 12), ("validation", 4), ("test", 6)):
        photos(folder / split, n, side=20)
    (folder / "classes.txt").write_text("ground\ndisc\n")
    return folder


@pytest.fixture(scope="module")
def finished(discs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "discs"
    return workdir, train.run(config_of(discs, workdir))


def test_a_run_learns_to_segment(finished):
    workdir, result = finished
    assert result["test"]["iou/disc"] > 0.8
    assert {"pixel_error", "mean_iou", "mean_dice", "iou/ground", "dice/disc", "rand_error"} < {*result["test"]}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert not any("rand_error" in row for row in rows if row["step"] < 60)
    run = zoo.load(workdir)
    assert (run.inputs.kind, run.inputs.shape) == ("segmentation", (12, 12, 1))


def test_a_run_resumes_bit_exactly(finished, discs, tmp_path):
    train.run(config_of(discs, tmp_path / "half", steps=30))
    train.run(config_of(discs, tmp_path / "half", resume=True))
    assert (tmp_path / "half/metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()
    one, other = (digests(folder / "checkpoints/60") for folder in (finished[0], tmp_path / "half"))
    assert one == other


def digests(checkpoint):
    return json.loads((checkpoint / "meta/metadata").read_text())["digests"]


def test_the_reported_metrics_are_those_of_predictions_by_tiles(finished, discs):
    workdir, result = finished
    segmenter, confusion = Segmenter(zoo.load(workdir)), np.zeros((2, 2))
    for file in (discs / "test" / "images").iterdir():
        with Image.open(discs / "test" / "masks" / file.name) as mask:
            np.add.at(confusion, (np.asarray(mask), segmenter(str(file)).argmax(-1)), 1)
    np.testing.assert_allclose(overlaps(confusion)[0][1], result["test"]["iou/disc"], atol=1e-6)


def test_the_report_draws_the_worst_images(finished, capsys):
    workdir, _ = finished
    assert main(["report", str(workdir)]) == 0
    page = (workdir / "report" / "report.html").read_text()
    assert all(f"alt='{name}'" in page for name in ("curves", "confusion", "worst"))
    assert "of the pixels of 6 examples of test are wrong" in page


def test_a_model_with_a_margin_trains_on_pieces_inside_their_context(discs, tmp_path):
    model = train.ModelConfig("unet", {"widths": (4, 6), "dropout_rate": 0.0})
    data = train.SegmentationData(path=str(discs), tile=28)
    config = config_of(
        discs, tmp_path / "x", steps=40, eval_every=40, model=model, data=data, task=train.Segmentation()
    )
    assert train.run(config)["test"]["mean_iou"] > 0.6


def test_a_second_head_adds_its_loss():
    model = zoo.create_model("fcn_resnet50", stage_sizes=(1, 1, 1, 1), width=4, num_classes=2, auxiliary=True)
    inputs = SegmentationInputs((16, 16, 1), (0.5,), (0.25,), ("ground", "disc"))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (2, 16, 16, 1)).astype(np.uint8), "weight": np.ones(2, np.float32)}
    batch["mask"] = (batch["image"][..., 0] > 128).astype(np.uint8)
    variables = jax.jit(model.init)(KEY, inputs.normalize(batch["image"]))

    @jax.jit
    def losses(variables):
        def total(weight):
            forward = Forward(model, inputs, variables, 0, KEY)
            task = train.Segmentation(auxiliary=weight)
            return task.loss(forward, batch, train.Extra(), KEY, train=True).total

        return total(0.0), total(0.5), total(1.0)

    none, half, whole = map(float, losses(variables))
    assert half - none == pytest.approx(whole - half, rel=1e-4)
    assert 2 * np.log(2) / 5 < whole - none < 2 * 5 * np.log(2)  # of two examples with random weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": train.ModelConfig("simple_cnn")}, "SimpleCNN gives no logits for pixels"),
        ({"data": train.ImageData()}, "task Segmentation needs mask of every example"),
        ({"task": train.Classification()}, "UNet is no classifier"),
        ({"task": train.Segmentation(class_weights={"dsic": 2})}, "unknown label in task.class-weights 'dsic'"),
        ({"data": train.SegmentationData()}, "data.name must be a segmentation set of TFDS, or data.path a folder"),
        ({"data": train.SegmentationData("digits", channels=2)}, "data.channels must be 1 or 3, not 2"),
        ({"task": train.Segmentation(cross_entropy=0, dice=0)}, "are both 0: one must be above 0"),
        ({"task": train.Segmentation(border_sigma=0)}, "task.border-sigma must be above 0"),
        ({"task": train.Segmentation(dice=-1)}, "task.dice must be at least 0, not -1"),
        ({"task": train.Segmentation(class_weights={"disc": 0})}, "task.class-weights disc must be a number above 0"),
        ({"task": train.Segmentation(augment=train.DeformConfig(scale=1))}, r"task.augment.scale must be in \[0, 1\)"),
        ({"task": train.Segmentation(augment=train.DeformConfig(rotate=181))}, "task.augment.rotate must be between"),
        ({"task": train.Segmentation(augment=train.DeformConfig(elastic=-1))}, "task.augment.elastic must be at least"),
        (
            {"task": train.Segmentation(augment=train.DeformConfig(spacing=1))},
            "task.augment.spacing must be at least 2",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message, discs, tmp_path):
    with pytest.raises(zoo.ZooError, match=message):
        train.run(config_of(discs, tmp_path / "x", **changes))


def test_border_weights_need_borders(discs, tmp_path):
    data = train.SegmentationData(path=str(discs), tile=12)
    with pytest.raises(zoo.ZooError, match=r"task\.border-weight needs data\.borders"):
        train.run(config_of(discs, tmp_path / "x", data=data))
