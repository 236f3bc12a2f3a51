"""The detection task: augmentation that moves boxes, figures, a run on squares and discs, its prediction and report."""

import contextlib
import dataclasses
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

import train
import zoo
from train import BoxAugmentConfig, Config, Detection, DetectionData, LogConfig, ModelConfig, OptimizerConfig
from train.average_precision import Image as Found
from train.commands.report import draw_report
from train.data.augment_boxes import augmented
from train.first_weights import load_data
from train.report.page import Options
from train.setup import Parts
from train.tasks.detection import figures
from zoo.__main__ import main as zoo_main
from zoo.export import export
from zoo.serve.models import Bounds, served

TINY = {
    **{"backbone_name": "resnet8", "backbone_args": {"width": 4}, "stages": ("stage1", "stage2", "stage3")},
    **{"width": 4, "hidden_size": 8, "anchors": ((8,), (12,), (16,), (24,)), "num_detections": 8},
    **{"num_proposals": (20, 10), "train_proposals": (20, 10), "anchor_samples": 16, "region_samples": 8},
}


def scenes(folder: pathlib.Path, number: int = 6) -> pathlib.Path:
    """Images of 48 x 40 pixels with a square and a disc each, but for the first, and a CSV of their boxes."""
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["file,label,x0,y0,x1,y1,split"]
    for i in range(number):
        image = Image.new("RGB", (48, 40), (20, 20, 20))
        pen, split = ImageDraw.Draw(image), ("train", "train", "train", "val", "test", "test")[i % 6]
        for label, shape in (("square", pen.rectangle), ("disc", pen.ellipse)) if i else ():
            x, y = (int(n) for n in rng.integers(2, 22, 2))
            shape((x, y, x + 12, y + 12), fill=(200, 180, 40))
            lines.append(f"{i}.png,{label},{x},{y},{x + 12},{y + 12},{split}")
        if not i:
            lines.append("0.png,,,,,,train")
        image.save(folder / f"{i}.png")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("detection")
    config = Config(
        workdir=str(folder / "run"),
        parallel="jit",
        steps=2,
        batch_size=2,
        eval_every=1,
        model=ModelConfig("fasterrcnn_resnet50_fpn", TINY),
        data=DetectionData(path=str(scenes(folder / "data")), image_size="40x48"),
        task=Detection(augment=BoxAugmentConfig(flip=True, flip_vertical=True, zoom=0.2, colour=0.1)),
        optimizer=OptimizerConfig("adamw", 1e-3),
        log=LogConfig(every=1, tensorboard=False),
    )
    train.run(config)
    return folder / "run"


def test_a_run_reports_losses_precision_counts_and_cocos_figures(run: pathlib.Path) -> None:
    result = json.loads((run / "result.json").read_text())
    test = result["test"]
    four = {"objectness", "proposal_box", "classifier", "box"}
    assert test["loss"] == pytest.approx(sum(test[f"loss/{name}"] for name in four), rel=1e-5)
    figures = {"map_50", "map", "map_75", "recall_100", "map_50/disc", "map_50/square", "count_error/disc"}
    assert figures <= test.keys()
    assert test["map_50"] == pytest.approx((test["map_50/disc"] + test["map_50/square"]) / 2)


def test_predict_prints_objects_and_writes_the_picture(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of an image of another size, in its own pixels; once more is an error, and --overwrite is none."""
    monkeypatch.chdir(tmp_path)
    Image.open(run.parent / "data" / "1.png").resize((96, 80)).save("photo.png")
    command = ["predict", str(run), "photo.png", "--threshold", "0.01", "--json"]
    assert zoo_main(command) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["counts"].keys() == {"disc", "square"}
    assert sum(line["counts"].values()) == len(line["objects"]) > 0
    boxes = np.array([one["box"] for one in line["objects"]])
    assert (boxes >= 0).all()
    assert (boxes <= [96, 80, 96, 80]).all()
    assert boxes.max() > 48
    assert Image.open("photo_boxes.png").size == (96, 80)
    before = pathlib.Path("photo_boxes.png").read_bytes()
    assert zoo_main(command) == 2
    assert "photo_boxes.png' exists" in capsys.readouterr().err
    assert pathlib.Path("photo_boxes.png").read_bytes() == before
    assert zoo_main([*command[:-1], "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith("photo.png: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-k", "2"], "--top-k and --labels are for classes of whole images"),
        (["--threshold", "2"], "the threshold must be between 0 and 1, not 2.0"),
    ],
)
def test_flags_that_do_not_fit_are_errors(
    run: pathlib.Path, flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with contextlib.suppress(SystemExit):
        assert zoo_main(["predict", str(run), "photo.png", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_image_is_an_error_and_the_others_are_predicted(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.png").write_bytes(b"no image")
    Image.new("L", (30, 50)).save("b.png")
    assert zoo_main(["predict", str(run), "a.png", "b.png"]) == 2
    out, err = capsys.readouterr()
    assert "a.png' is not a readable image" in err
    assert out.startswith("b.png: ")
    assert not pathlib.Path("a_boxes.png").exists()


def test_a_detector_is_neither_served_nor_exported(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    loaded = zoo.load(run)
    with pytest.raises(zoo.ZooError, match="FasterRCNN with inputs of kind 'detection' is not served"):
        served(loaded, Bounds())
    with pytest.raises(zoo.ZooError, match="a run with inputs of kind 'detection' has no script"):
        export(loaded, tmp_path / "out")


def test_the_report_has_its_pictures(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        draw_report(Options(str(run), output=str(tmp_path)))
    assert {file.name for file in tmp_path.iterdir()} == {
        *("report.html", "curves.png", "precision.png", "kinds.png", "worst.png")
    }
    assert "on 2 images of test" in (tmp_path / "report.html").read_text()


def test_a_detector_loads_without_its_script(run: pathlib.Path) -> None:
    loaded = zoo.load(run)
    batch = loaded.inputs.batch([run.parent / "data" / "1.png"])
    args, kwargs = loaded.inputs.arguments(batch)
    found = loaded.model.apply(loaded.variables, *args, **kwargs)
    assert found["boxes"].shape == (1, 8, 4)
    assert loaded.inputs.labels == ("disc", "square")


# Augmentation. A box is where the image is white.


def marked() -> dict[str, jax.Array]:
    """Images of 32 x 40 with a white box each; the second fills 24 x 40 of its frame."""
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[:, 0] = [[6, 4, 18, 12], [20, 10, 34, 22]]
    images = np.zeros((2, 32, 40, 3), np.uint8)
    for image, ((x0, y0, x1, y1), *_) in zip(images, boxes.astype(int), strict=True):
        image[y0:y1, x0:x1] = 255
    images[1, 24:] = 128
    return {
        "image": jnp.asarray(images),
        "boxes": jnp.asarray(boxes),
        "box_label": jnp.array([[0, -1, -1], [1, -1, -1]]),
        "size": jnp.array([[32.0, 40], [24, 40]]),
        "row": jnp.arange(2),
    }


@pytest.mark.parametrize(
    "config",
    [BoxAugmentConfig(flip=True), BoxAugmentConfig(flip_vertical=True), BoxAugmentConfig(zoom=0.5)],
    ids=["flip", "flip_vertical", "zoom"],
)
def test_boxes_move_with_the_image(config: BoxAugmentConfig) -> None:
    """Inside a box all is white to a pixel of its border, outside nothing is; over many keys, some change."""
    batch, moved, seen = marked(), 0, 0
    augment = jax.jit(lambda key: augmented(config, key, batch))
    for key in range(12):
        found = {name: np.asarray(x) for name, x in augment(jax.random.key(key)).items()}
        for i in range(2):
            if found["box_label"][i, 0] < 0:
                continue
            seen += 1
            box, image = found["boxes"][i, 0], found["image"][i, ..., 0]
            moved += int(np.abs(box - np.asarray(batch["boxes"][i, 0])).max() > 1)
            rows, columns = (np.arange(n) + 0.5 for n in image.shape)
            inside = (
                ((rows > box[1] + 1) & (rows < box[3] - 1))[:, None] & (columns > box[0] + 1) & (columns < box[2] - 1)
            )
            near = (
                ((rows > box[1] - 1) & (rows < box[3] + 1))[:, None] & (columns > box[0] - 1) & (columns < box[2] + 1)
            )
            assert image[inside].min() > 240
            assert image[~near].max() < 140
    assert seen > 15
    assert moved > 5


def test_a_box_that_leaves_the_image_is_dropped() -> None:
    """Zoomed in by up to eleven times, most pictures do not show it."""
    batch = marked()
    found = [augmented(BoxAugmentConfig(zoom=10), jax.random.key(key), batch)["box_label"] for key in range(8)]
    labels = np.stack([np.asarray(one)[:, 0] for one in found])
    assert (labels == -1).any()
    assert (labels >= 0).any()


def test_augmentation_depends_on_the_row_alone() -> None:
    batch = marked()
    config = BoxAugmentConfig(True, True, 0.3, 0.3)
    whole = augmented(config, jax.random.key(0), batch)
    second = augmented(config, jax.random.key(0), {name: x[1:] for name, x in batch.items()})
    for name in ("image", "boxes", "box_label", "size"):
        np.testing.assert_allclose(whole[name][1:], second[name], rtol=1e-5, atol=1e-4)


def test_colour_changes_pixels_and_not_boxes() -> None:
    batch = marked()
    found = augmented(BoxAugmentConfig(colour=0.5), jax.random.key(0), batch)
    assert float(jnp.abs(found["image"] - batch["image"]).max()) > 5
    np.testing.assert_array_equal(found["boxes"], batch["boxes"])


def test_counts_are_of_detections_above_the_threshold() -> None:
    box = [0.0, 0, 10, 10]
    image = Found(
        np.array([box] * 3),
        np.array([0.9, 0.6, 0.4]),
        np.array([0, 0, 1]),
        np.array([box]),
        np.array([0]),
        np.zeros(1, bool),
    )
    found = figures([image], ("a", "b"), 0.5, final=False)
    assert (found["count_error/a"], found["count_error/b"]) == (1, 0)
    assert found["map_50"] == found["map_50/a"] == 1
    assert "map_50/b" not in found
    assert figures([image], ("a", "b"), 0.3, final=False)["count_error/b"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": Detection(count_threshold=1.5)}, "task.count-threshold must be between 0 and 1, not 1.5"),
        ({"task": Detection(augment=BoxAugmentConfig(zoom=-1))}, "task.augment.zoom must be between 0 and 10, not -1"),
        ({"task": Detection(augment=BoxAugmentConfig(colour=2))}, "task.augment.colour must be between 0 and 1, not 2"),
        ({"model": ModelConfig("resnet8")}, "ResNet is no detector"),
        ({"task": train.Classification()}, "FasterRCNN is no classifier of whole examples"),
        ({"data": train.ImageData("digits")}, "task Detection needs boxes and box_label of every example"),
    ],
)
def test_settings_that_do_not_fit_are_errors(change: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    config = Config(
        workdir=str(tmp_path / "run"),
        steps=1,
        batch_size=2,
        model=ModelConfig("fasterrcnn_resnet50_fpn", TINY),
        data=DetectionData(path=str(scenes(tmp_path / "data")), image_size="40x48"),
        task=Detection(),
        optimizer=OptimizerConfig("adamw", 1e-3),
    )
    with pytest.raises(zoo.ZooError, match=message):
        train.run(dataclasses.replace(config, **change))


def begun(weights: str, tmp_path: pathlib.Path, parallel: str = "jit") -> Any:
    """What a run with `model.weights` is made of, and its state before the first step."""
    fields = {name: value for name, value in TINY.items() if not name.startswith("backbone")}
    config = Config(
        workdir=str(tmp_path / "run"),
        steps=1,
        batch_size=8,
        parallel=parallel,
        model=ModelConfig("fasterrcnn_resnet50_fpn", fields, weights),
        data=DetectionData(path=str(scenes(tmp_path / "data")), image_size="40x48"),
        task=Detection(),
        optimizer=OptimizerConfig("adamw", 1e-3),
    )
    parts = Parts.of(config, load_data(config, None))
    return parts, parts.first_state()


@pytest.mark.parametrize("parallel", ["jit", "mesh"])
def test_a_backbone_begins_with_a_classifiers_weights(parallel: str, tmp_path: pathlib.Path) -> None:
    """Those of any model that `zoo.load` finds, with its fields and its normalisation; the rest is drawn."""
    parts, state = begun("resnet20", tmp_path, parallel)
    run = zoo.load("resnet20")
    assert parts.model_args["backbone_name"] == "resnet20"
    assert (parts.dataset.inputs.mean, parts.dataset.inputs.std) == (run.inputs.mean, run.inputs.std)
    assert parts.dataset.inputs.shape == (40, 48, 3)
    for collection, name in (("params", "layer3_2"), ("batch_stats", "layer2_1")):
        theirs = run.variables[collection][name]
        ours = state.variables()[collection]["backbone"]["body"][name]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert "fc" not in state.params["backbone"]["body"]


def test_a_classifier_of_grey_images_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(zoo.ZooError, match="has colour images; the weights are for images of 1 channels"):
        begun("lenet5", tmp_path)
