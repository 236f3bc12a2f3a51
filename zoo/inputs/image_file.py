"""Files, bytes, arrays and PIL images as upright pictures of 8 bits with the channels and the size of a model."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from zoo.errors import ZooError, first_line

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Margin = Literal["nearest", "down"]
MOST_PIXELS = 2**27  # in a file
MOST_STRETCHED = 16  # the largest aspect ratio relative to `size`; longer images are cropped before resizing
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of 8 bits, by the number of channels
# Formats that begin with a signature of their own. Those without one are tried by a file's suffix alone.
SIGNED = ("AVIF", "BMP", "DDS", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")
UNSIGNED = {".tga": "TGA", ".pcx": "PCX"}
# How Pillow reads the high bytes of 16 bits per channel, of which it keeps no more, and how the low ones.
LOW = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
DEEP_COLOUR = {f"{mode};16{high}": f"{mode};16{low}" for mode in ("RGB", "RGBA") for high, low in LOW.items()}
PAIRS = "RGBA"  # of a high and a low byte, grey and transparency
DEEP_COLOUR["LA;16B"] = PAIRS
# Files with other endings that are no images are not meant as some.
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".avif", ".heic", ".heif", ".jp2", ".ico", ".tga", ".pcx", ".dds", ".qoi"),
}
FIRST_TO = {"La": "LA", "LAB": "RGB"}  # modes that Pillow brings to others in two steps
ORIENTATION = 0x0112  # the EXIF tag


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image before the pixels are read."""

    size: tuple[int, int]  # height and width, as stored
    channels: int  # 1 for grey, with or without transparency; 3 for colour
    deep: bool  # more than 8 bits per channel


def header(path: str | os.PathLike | bytes) -> Header:
    """The header of an image file, or of its bytes; ZooError where the file is none."""
    with _readable(path), _opened(path) as image:
        _check_size(image)
        deep = image.mode[0] in "IF" or _rawmode(image) in DEEP_COLOUR
        grey = image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF" or _rawmode(image) == "LA;16B"
        if image.mode == "P":
            colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
            grey = bool((colours == colours[:, :1]).all())
        return Header((image.height, image.width), 1 if grey else 3, deep)


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file begins like an image."""
    try:
        header(path)
    except ZooError:
        return False
    return True


def deep_values(raw: Any) -> np.ndarray | None:
    """The values of an image of more than 8 bits, [h, w] or [h, w, c]; None for one of 8 bits. ZooError as
    `open_image`."""
    with _readable(raw):
        found = _upright_picture(raw)
        return found if isinstance(found, np.ndarray) else None


def open_image(raw: Any, channels: int, limits: tuple[float, float] | None = None) -> Any:
    """A path, bytes, an array or a PIL image as an upright PIL image of 8 bits with `channels` (1 to 4; the second and
    the fourth are transparency); ZooError, which names the file, for anything that is not an image.

    Takes the first frame of an animation, applies the orientation that EXIF gives, and puts transparent pixels over
    white where the model has no channel for them. Values of more than 8 bits are scaled so that `limits` become 0 and
    255; by default those of 16 bits lose the lower 8. An array is [h, w] or [h, w, 1 to 4].
    """
    if channels not in MODES:
        raise ZooError(f"images have 1 to 4 channels; the model needs {channels}")
    with _readable(raw):
        found = _upright_picture(raw)
        if isinstance(found, np.ndarray):
            if limits is None and isinstance(raw, np.ndarray) and raw.dtype != np.uint16:
                raise ZooError(f"an image array must be uint8 or uint16 for inputs without a range, not {raw.dtype}")
            found = _from_array(_eight_bits(found, limits, _named(raw)))
        if found.mode in FIRST_TO:
            found = found.convert(FIRST_TO[found.mode])
        if channels in (1, 3) and found.has_transparency_data:
            from PIL import Image

            found = found.convert("RGBA")
            found = Image.alpha_composite(Image.new("RGBA", found.size, "white"), found)
        return found.convert(MODES[channels])


@contextlib.contextmanager
def _readable(raw: Any) -> Iterator[None]:
    """Turns what Pillow raises into a ZooError of one line that names the image."""
    try:
        yield
    except (ZooError, MemoryError):
        raise
    except FileNotFoundError:
        raise ZooError(f"no image file {str(raw)!r}") from None
    except ImportError:
        raise ZooError("reading images needs Pillow; install it with: pip install 'flaxzoo[image]'") from None
    except Exception as error:  # each of Pillow's decoders has its own for damaged data
        unknown = type(error).__name__ == "UnidentifiedImageError"  # whose message repeats the path
        why = "it has no image's signature" if unknown else first_line(error)
        raise ZooError(f"{_named(raw)} is not a readable image: {why}") from None


def _named(raw: Any) -> str:
    return repr(str(raw)) if isinstance(raw, str | os.PathLike) else "the image"


@contextlib.contextmanager
def _opened(raw: Any) -> Iterator[Any]:
    """The PIL image of a path or of bytes, before its pixels are read."""
    from PIL import Image

    Image.init()
    formats, source = [name for name in SIGNED if name in Image.OPEN], raw
    if isinstance(raw, bytes):
        source = io.BytesIO(raw)
    else:
        source = pathlib.Path(raw).expanduser()
        formats += [UNSIGNED[suffix] for suffix in {source.suffix.lower()} & UNSIGNED.keys()]
    with Image.open(source, formats=formats) as image:
        yield image


def _check_size(image: Any) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")


def _rawmode(image: Any) -> str:
    """How a PNG or TIFF file stores its pixels; "" for another file."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return ""
    args = image.tile[0][3]
    return str(args[0] if isinstance(args, tuple) else args)


def _content(image: Any) -> bytes:
    """All bytes of the file of a PIL image, which stays at its place."""
    file = image.fp
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _stored_as(tile: Any, rawmode: str) -> Any:
    """A part of a PNG or TIFF file, read as if its pixels were stored in another way."""
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _upright_picture(raw: Any) -> Any:
    """An upright PIL image of 8 bits, or the array of one of more."""
    from PIL import Image

    if isinstance(raw, np.ndarray):
        if raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[-1] not in MODES) or raw.dtype.kind not in "buif":
            raise ZooError(f"an image array must be numbers [h, w] or [h, w, 1 to 4], not {raw.dtype} {raw.shape}")
        if raw.dtype == bool:
            return _from_array(raw * np.uint8(255))
        return _from_array(raw) if raw.dtype == np.uint8 else raw
    if isinstance(raw, Image.Image):
        if _rawmode(raw) in DEEP_COLOUR:  # its pixels are not read yet
            return _upright_picture(_content(raw))
        raw.load()
        return _of_pillow(_upright(raw))
    if not isinstance(raw, str | os.PathLike | bytes):
        raise ZooError(f"an image must be a path, bytes, an array or a PIL image, not {type(raw).__name__}")
    with _opened(raw) as image:
        _check_size(image)
        second = DEEP_COLOUR.get(_rawmode(image))
        image.load()
        found = _upright(image)
    return _of_pillow(found) if second is None else _deep_colour(raw, found, second)


def _deep_colour(raw: Any, found: Any, second: str) -> Any:
    """All 16 bits of an image that Pillow has `found` to have 8, as uint16 [h, w] or [h, w, 3], by reading it a second
    time; what is found where some of it is transparent."""
    with _opened(raw) as image:
        image.tile = [_stored_as(tile, second) for tile in image.tile]
        image.load()
        pixels = np.asarray(_upright(image), np.uint16)
    if second == PAIRS:
        values = pixels[..., ::2] << 8 | pixels[..., 1::2]
    else:
        values = np.asarray(found, np.uint16) << 8 | pixels
    if values.shape[-1] == 3:
        return values
    return values[..., 0 if second == PAIRS else slice(3)] if values[..., -1].min() == 65535 else found


def _upright(image: Any) -> Any:
    """A loaded PIL image as its camera was held; one without a valid orientation as it is."""
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    try:
        method = turns.get(image.getexif().get(ORIENTATION))
    except Exception:  # EXIF of any wrong form, which says nothing of the pixels
        method = None
    return image if method is None else image.transpose(method)


def _of_pillow(image: Any) -> Any:
    """The image, or its array where it has more than 8 bits."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    return values.astype(values.dtype.newbyteorder("="))


def _from_array(array: np.ndarray) -> Any:
    """The PIL image of an array uint8 [h, w] or [h, w, 1 to 4]."""
    from PIL import Image

    if 0 in array.shape:
        raise ZooError(f"an image array of shape {array.shape} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))


def _eight_bits(values: np.ndarray, limits: tuple[float, float] | None, name: str) -> np.ndarray:
    """Deeper values as uint8: `limits` become 0 and 255; without limits those of 16 bits lose the lower 8."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ZooError(f"{name} has pixels that are not finite")
    if limits is not None:
        low, high = limits
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    sixteen = values.dtype in (np.uint16, np.int32) and values.min() >= 0 and values.max() <= 65535
    if not sixteen:
        raise ZooError(
            f"{name} has pixels of {values.dtype}, from {values.min()} to {values.max()}: the model's inputs need a "
            "range of values (training's data.range), or the image 8 or 16 bits per channel"
        )
    return (values >> 8).astype(np.uint8)


def _scaled(image: Any, width: int, height: int, squash: bool) -> tuple[int, int]:
    """Width and height of an image that covers some, the longer side rounded down."""
    if squash:
        return width, height
    if image.width * height <= image.height * width:
        return width, max(int(width * image.height / image.width), height)
    return max(int(height * image.width / image.height), width), height


def fit(
    image: Any,
    size: tuple[int, int],
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    squash: bool = False,
    margin: Margin = "nearest",
) -> np.ndarray:
    """A PIL image to uint8 [height, width, C]: resized until it covers `size`, then center-cropped.

    With `crop` it is resized to cover `size` / crop, with sizes rounded as by torchvision's Resize, and margins as by
    its CenterCrop, or else "down"; with `squash` it is resized to just that size.
    """
    from PIL import Image

    method = Image.Resampling[interpolation.upper()]
    height, width = size
    across, down = (
        MOST_STRETCHED * max(image.height * width // height, 1),
        MOST_STRETCHED * max(image.width * height // width, 1),
    )
    if image.width > across or image.height > down:
        left, top = max(image.width - across, 0) // 2, max(image.height - down, 0) // 2
        image = image.crop((left, top, min(left + across, image.width), min(top + down, image.height)))
    if crop is not None or squash:
        scaled = _scaled(image, math.floor(width / (crop or 1)), math.floor(height / (crop or 1)), squash)
        image = image if scaled == image.size else image.resize(scaled, method)
        half = math.floor if margin == "down" else round  # round: to the even neighbour
        left, top = half((image.width - width) / 2), half((image.height - height) / 2)
    else:
        scale = max(height / image.height, width / image.width)
        if (image.height, image.width) != size:
            scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            image = image.resize(scaled, method)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
