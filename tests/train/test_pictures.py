"""python -m train report: the pictures show what their captions claim, and the page needs no other file."""

import re
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from runs import TINY, finish
from train.__main__ import main
from train.report.images import check_convolutional, confusion, worst_mistakes
from zoo.explain import explain, rollout
from zoo.inputs.image import ImageInputs
from zoo.run import Run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report") / "run"
    finish("cnn", "--workdir", workdir, *TINY)
    return workdir


def test_the_page_embeds_every_picture_and_links_to_nothing(run_folder, capsys):
    assert main(["report", str(run_folder)]) == 0
    page = run_folder / "report" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert len(re.findall(r"src='data:image/png;base64,", text)) == 5
    assert not re.search(r"(src|href)\s*=\s*['\"](?!data:)", text)
    for name in ("curves", "confusion", "mistakes", "kernels", "attention"):
        with Image.open(run_folder / "report" / f"{name}.png") as picture:
            assert min(picture.size) > 50


def test_chosen_images_are_explained_and_a_bad_one_leaves_no_folder(run_folder, tmp_path, capsys):
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert (
        main(["report", str(run_folder), "--images", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]) == 0
    )
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "empty.png").touch()
    args = ["report", str(run_folder), "--images", str(tmp_path / "empty.png"), "--output", str(tmp_path / "none")]
    assert main(args) == 2
    assert "empty.png" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_confusion_counts_labels_by_row_and_predictions_by_column():
    logits = np.eye(3)[[0, 1, 1, 2, 0]]
    assert confusion(logits, np.array([0, 1, 2, 2, 1]), 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_the_worst_mistake_comes_first_and_correct_predictions_never():
    logits = np.array([[5.0, 0], [0, 1], [0, 9], [2, 0]])
    assert worst_mistakes(logits, np.array([0, 0, 0, 1]), 10).tolist() == [2, 3, 1]
    assert worst_mistakes(logits, np.array([0, 0, 0, 1]), 1).tolist() == [2]


def test_the_gradient_by_the_pixels_is_that_of_the_predictions_logit():
    run = tiny_run()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    logits, _, by_x = explain(run, images)
    x, step = run.inputs.normalize(images), 1e-2
    direction = np.asarray(by_x[0] / np.linalg.norm(by_x[0]))

    def logit(x):
        return float(run.model.apply(run.variables, x)[0, np.argmax(logits[0])])

    up, down = (logit(x + sign * step * np.stack([direction, 0 * direction])) for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(np.linalg.norm(by_x[0]), rel=0.02)


def test_grad_cam_is_bright_where_the_prediction_comes_from():
    """A network whose first class is the mean redness: the map is bright where the image is red."""
    run = tiny_run()
    params = jax.tree.map(np.zeros_like, run.variables["params"])
    params["conv1"]["kernel"][1, 1, 0, 0] = params["conv2"]["kernel"][1, 1, 0, 0] = 1.0
    params["fc1"]["kernel"][..., 0, 0] = 1.0
    params["fc2"]["kernel"][0, 0] = 1.0
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, :8, 8:, 0] = 255
    logits, maps, _ = explain(Run(run.model, {"params": params}, run.inputs), image)
    assert np.argmax(logits[0]) == 0
    bright = np.asarray(maps[0]) > 0.5 * np.max(maps[0])
    assert bright.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_a_model_without_convolutions_is_refused():
    run = tiny_run()
    model = nn.Dense(3)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(zoo.ZooError, match=r"report draws ViTs, and convolutions .*; Dense has none"):
        check_convolutional(Run(model, variables, run.inputs))


def test_attention_rollout_is_large_where_a_vit_looks():
    """Two layers of one head: the second attends to the third patch, whose token the first copied from the fourth."""
    copies, looks = np.eye(5, dtype=np.float32), np.eye(5, dtype=np.float32)
    copies[3], looks[0] = np.eye(5)[4], np.eye(5)[3]
    shares = rollout([copies[None, None], looks[None, None]])
    np.testing.assert_allclose(shares[0, 0], [0.5, 0, 0, 0.25, 0.25])
    np.testing.assert_allclose(shares.sum(axis=-1), 1)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_a_vit_is_explained_by_shares_of_its_patches(pooling):
    fields = {"image_size": 16, "patch_size": 4, "hidden_size": 8, "num_layers": 2, "num_heads": 2}
    model = zoo.create_model("vit_tiny16", num_classes=3, pooling=pooling, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    run = Run(model, jax.tree.map(lambda leaf: leaf + 0.1, variables), tiny_run().inputs)
    check_convolutional(run)
    logits, maps, by_x = explain(run, images)
    assert (logits.shape, maps.shape, by_x.shape) == ((2, 3), (2, 4, 4), images.shape)
    assert (maps > 0).all()
    total = maps.sum(axis=(1, 2))  # the class token has a share too
    np.testing.assert_array_less(total, 0.9) if pooling == "token" else np.testing.assert_allclose(total, 1, rtol=1e-5)


def tiny_run():
    model = zoo.create_model("simple_cnn", num_classes=3, widths=(4, 4), hidden_size=8)
    inputs = ImageInputs((16, 16, 3), (0.0,) * 3, (1.0,) * 3, ("a", "b", "c"))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    return Run(model, jax.tree.map(np.array, variables), inputs)


def test_a_report_leaves_the_run_as_it_was(run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy, ignore=shutil.ignore_patterns("report"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["report", str(copy), "--output", str(tmp_path / "elsewhere")]) == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
