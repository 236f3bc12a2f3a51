"""python -m zoo predict: in pieces, a line for each image as it comes, whatever becomes of the others."""

import json

import numpy as np
import pytest
from PIL import Image

from zoo.__main__ import main
from zoo.commands.predict import PIECE
from zoo.inputs.image import ImageInputs


@pytest.fixture
def strokes(tmp_path):
    """More images than a piece: ones and, every third, a dark square."""
    for i in range(PIECE + 5):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:24, 13:16] = 255 * (i % 3 > 0)
        (tmp_path / "images" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / ("deep" if i % 2 else ".") / f"{i:02}.png")
    return tmp_path / "images"


def predict(capsys, *args):
    status = main(["predict", "lenet5", *map(str, args)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_a_folder_is_its_images_and_all_agree_with_single_ones(strokes, capsys):
    (strokes / "notes.txt").write_text("none")
    (strokes / ".hidden.png").write_text("none")
    status, out, err = predict(capsys, strokes, "--top-k", 2, "--json")
    assert (status, err, len(out)) == (0, [], PIECE + 5)
    found = [json.loads(line) for line in out]
    assert [line["file"] for line in found] == sorted(line["file"] for line in found)
    for line in (found[0], found[-1]):  # of a whole piece, and of the last
        (alone,) = [json.loads(text) for text in predict(capsys, line["file"], "--top-k", 2, "--json")[1]]
        assert [label["label"] for label in alone["labels"]] == [label["label"] for label in line["labels"]]
        for one, other in zip(alone["labels"], line["labels"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)  # rounding of other shapes
    assert found[1]["labels"][0]["label"] == "1"
    assert len(found[1]["labels"]) == 2


def test_what_cannot_be_read_is_a_line_and_the_rest_goes_on(strokes, tmp_path, capsys):
    (strokes / "05x.png").write_bytes((strokes / "04.png").read_bytes()[:50])
    status, out, err = predict(capsys, tmp_path / "absent.png", strokes, tmp_path / "other.txt")
    assert status == 2
    assert len(out) == PIECE + 5
    assert [line[:7] for line in err] == ["error: "] * 3
    for line, name in zip(err, ("absent.png", "05x.png", "other.txt"), strict=True):
        assert name in line
    assert predict(capsys, "lenet5", "--top-k", 0)[2] == ["error: --top-k must be at least 1, not 0"]


def test_pieces_are_bounded_and_printed_before_the_next_is_read(strokes, capsys, monkeypatch):
    sizes, printed, batch = [], [], ImageInputs.batch

    def recording(self, raws):
        sizes.append(len(raws))
        printed.append(len(capsys.readouterr().out.splitlines()))
        return batch(self, raws)

    monkeypatch.setattr(ImageInputs, "batch", recording)
    _, out, _ = predict(capsys, strokes)
    assert sizes == [PIECE, 5]
    assert printed == [0, PIECE]
    assert len(out) == 5


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    status, out, err = predict(capsys, tmp_path)
    assert (status, out, len(err)) == (2, [], 1)
    assert "is not a readable image" in err[0]
