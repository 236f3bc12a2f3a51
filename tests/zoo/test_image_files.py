"""Images of any mode, depth, size and orientation, and with any EXIF, as a model reads them; the files of a folder."""

import io
import itertools
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.inputs.image import ImageInputs
from zoo.inputs.image_file import deep_values, header, open_image
from zoo.inputs.walk import walk

GREY, COLOUR = (ImageInputs((8, 8, c), (0.0,) * c, (1.0,) * c, ("a", "b")) for c in (1, 3))
TWELVE = ImageInputs((8, 8, 1), (0.0,), (1.0,), ("a", "b"), range=(0, 4095))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Where the bright top left quarter of the stored image is, once it is upright.
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_every_orientation_is_undone_for_files_bytes_and_pil_images(kind, orientation, tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8] = 255
    path = tmp_path / "a"
    Image.fromarray(pixels).convert("RGB").save(path, kind, exif=turned(orientation))
    for raw in (path, path.read_bytes(), Image.open(path)):
        found = GREY.pixels(raw)[..., 0] > 128
        row, column = (4 * part for part in CORNERS[orientation])
        assert found[row : row + 4, column : column + 4].all()
        assert found.sum() == 16


@pytest.mark.filterwarnings("ignore:::PIL")
def test_exif_of_any_form_ends_nothing():
    """Seeded; entries of odd types, counts and tags, some of them cut off."""
    rng, plain = random.Random(0), io.BytesIO()
    Image.new("RGB", (16, 12), (200, 40, 40)).save(plain, "JPEG")
    plain = plain.getvalue()
    sizes = set()
    for _ in range(400):
        tags = [struct.pack("<HHI", 0x0112, 3, 1) + b"\6\0\0\0"]
        for _ in range(rng.randrange(1, 4)):
            tag = rng.choice([0x0100, 0x0110, 0x011A, 0x0128, 0x829A, 0x8769, 0x8825, rng.randrange(65536)])
            count = rng.choice([0, 1, 4, 1000, 2**31])
            tags.append(struct.pack("<HHI", tag, rng.randrange(14), count) + rng.randbytes(4))
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(40)
        exif = exif[: rng.randrange(len(exif))] if rng.random() < 0.3 else exif
        image = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
        sizes.add(open_image(image, 3).size)
    assert sizes == {(16, 12), (12, 16)}


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "I;16B",
]


def test_every_mode_size_and_number_of_channels_is_read():
    for mode, size, channels in itertools.product(MODES, [(1, 1), (1, 9), (300, 2), (8, 8)], [1, 2, 3, 4]):
        inputs = ImageInputs((8, 5, channels), (0.0,) * channels, (1.0,) * channels, ())
        assert inputs.pixels(Image.new(mode, size)).shape == (8, 5, channels), mode


def test_every_array_is_read_or_refused():
    for dtype, tail in itertools.product("?bBhHiIlLefd", [(), (1,), (2,), (3,), (4,)]):
        array = np.ones((9, 7, *tail), dtype)
        assert TWELVE.pixels(array).shape == (8, 8, 1)
        if np.dtype(dtype) in (np.uint8, np.uint16, np.bool_):
            assert GREY.pixels(array).shape == (8, 8, 1)
        else:
            with pytest.raises(zoo.ZooError, match="an image array must be uint8 or uint16 for inputs without a range"):
                GREY.pixels(array)
    for wrong in (np.zeros((0, 8), np.uint8), np.zeros((8, 8, 5), np.uint8), np.zeros(8, np.uint8), np.array([["a"]])):
        with pytest.raises(zoo.ZooError, match="an image array"):
            GREY.pixels(wrong)
    with pytest.raises(zoo.ZooError, match="not finite"):
        TWELVE.pixels(np.full((8, 8), np.nan))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_a_range_becomes_0_to_255(dtype):
    ramp = np.array([0, 1000, 4095, 5000, 65535] * 8)[:8].astype(dtype) * np.ones((8, 1), dtype)
    np.testing.assert_array_equal(TWELVE.pixels(ramp)[0, :5, 0], [0, 62, 255, 255, 255])


def test_images_of_8_bits_keep_their_values_whatever_the_range():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(TWELVE.pixels(image), GREY.pixels(image))


@pytest.mark.parametrize("limits", [(1, 1), (5, 0), (0,), ("a", "b"), 3, (0, float("nan")), (0, 10**400), (True, 3)])
def test_a_wrong_range_is_refused(limits):
    with pytest.raises(zoo.ZooError, match="range must be two numbers, the lower one first"):
        ImageInputs((8, 8, 1), (0.0,), (1.0,), (), range=limits)


def png(pixels):
    """A PNG file of uint16 [h, w, c]."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    about = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    body = chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_16_bits_of_a_png_are_read(channels):
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 8, channels)).astype(np.uint16)
    colours = channels - (channels in (2, 4))
    pixels[..., colours:] = 65535
    np.testing.assert_array_equal(deep_values(png(pixels)).reshape(8, 8, colours), pixels[..., :colours])
    inputs = ImageInputs((8, 8, channels), (0.0,) * channels, (1.0,) * channels, (), range=(0, 4095))
    expected = np.rint(np.minimum(pixels, 4095) * (255 / 4095))
    np.testing.assert_array_equal(inputs.pixels(png(pixels)), expected)
    image = Image.open(io.BytesIO(png(pixels)))
    np.testing.assert_array_equal(inputs.pixels(image), expected)
    assert image.convert("RGB").size == (8, 8)  # it can still be read
    if channels != colours:
        pixels[0, 0, -1] = 0  # one transparent pixel
        assert deep_values(png(pixels)) is None


def tiff(pixels, order, compressed):
    """A TIFF file of uint16 [h, w, 3]; `order` is that of the bytes."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    after = 8 + len(data)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, after), (259, 3, 1, 8 if compressed else 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, after + 2 * channels) + data
    content += struct.pack(f"{order}{channels}H", *[16] * channels) + struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        content += struct.pack(f"{order}HHI", tag, kind, count)
        content += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    return content + bytes(4)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_all_16_bits_of_a_tiff_are_read(order, compressed):
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    np.testing.assert_array_equal(deep_values(tiff(pixels, order, compressed)), pixels)


def test_alpha_is_a_channel_where_the_model_has_one():
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    image.putpixel((0, 0), (1, 2, 3, 255))
    four = ImageInputs((8, 8, 4), (0.0,) * 4, (1.0,) * 4, ())
    assert four.pixels(image)[0, 0].tolist() == [1, 2, 3, 255]
    assert four.pixels(image)[1, 1].tolist() == [10, 20, 30, 0]
    assert four.pixels(Image.new("L", (8, 8), 7))[0, 0].tolist() == [7, 7, 7, 255]
    assert COLOUR.pixels(image)[1, 1].tolist() == [255, 255, 255]


def test_headers_tell_grey_deep_and_none(tmp_path):
    kinds = {"L": (1, False), "LA": (1, False), "1": (1, False), "I;16": (1, True), "RGB": (3, False), "P": (3, False)}
    for mode, expected in kinds.items():
        path = tmp_path / f"{mode.replace(';', '')}.any"
        image = Image.new("RGB", (9, 5), "red").convert("P") if mode == "P" else Image.new(mode, (9, 5))
        image.save(path, "PNG")
        found = header(path)
        assert ((found.channels, found.deep), found.size) == (expected, (5, 9)), mode
    for name, content in {"a.txt": b"P5 is a text", "b.tga": b"\0" * 30, "c": b"\n\5\1\1", "d.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(zoo.ZooError, match=f"{name}' is not a readable image"):
            header(tmp_path / name)


def test_a_walk_passes_over_hidden_files_and_follows_links_once(tmp_path):
    for name in ("b/1", "b/.hidden", ".git/x", "__MACOSX/._1", "a/Thumbs.db", "a/deep/er/2", "desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    tree = walk(tmp_path)
    assert [str(file) for file in tree.files] == ["a/deep/er/2", "b/1", "c/1", "gone"]
    assert [str(folder) for folder in tree.folders] == ["a", "a/deep", "a/deep/er", "b", "c"]
    assert tree.hidden == 6
    with pytest.raises(zoo.ZooError, match=r"data.path '.*absent' is not a folder"):
        walk(tmp_path / "absent")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("L", (8, 8), 9).save(tmp_path / "a.png")
    assert (GREY.pixels("~/a.png") == 9).all()
    assert [str(file) for file in walk("~").files] == ["a.png"]
