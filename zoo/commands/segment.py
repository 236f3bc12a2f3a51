"""python -m zoo predict of a run that segments images: a mask beside each image's shares of classes."""

import json
import pathlib
import sys
from collections.abc import Iterable

import numpy as np

from zoo.errors import ZooError
from zoo.run import Run
from zoo.segmenter import Segmenter, palette


def segment(run: Run, files: Iterable[str], as_json: bool, overwrite: bool) -> int:
    """Writes the mask of each image file to the current folder, photo_mask.png of photo.jpg, and prints the share of
    its pixels that each class has; the exit status, 2 where an image cannot be read or a mask not written.

    A mask is a palette PNG of the image's size, whose values are the numbers of the classes. One that exists is an
    error unless `overwrite`; so are two images of one name.
    """
    segmenter, status, written = Segmenter(run), 0, set()
    for file in files:
        path = pathlib.Path(f"{pathlib.Path(file).stem}_mask.png")
        try:
            if path in written:
                raise ZooError(f"{file!r} would have the mask {str(path)!r} of another image; predict it in a folder")
            if path.exists() and not overwrite:
                raise ZooError(f"{str(path)!r} exists; move it away, or replace it with --overwrite")
            mask = segmenter(file).argmax(axis=-1).astype(np.uint8)
            write(mask, path, len(run.inputs.labels))
        except ZooError as error:
            status = 2
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        written.add(path)
        shares = np.bincount(mask.ravel(), minlength=len(run.inputs.labels)) / mask.size
        found = [*zip(run.inputs.labels, map(float, shares), strict=True)]
        if as_json:
            labels = [{"label": label, "share": round(share, 6)} for label, share in found]
            print(json.dumps({"file": file, "mask": str(path), "labels": labels}), flush=True)
        else:
            name = file.encode("utf-8", "backslashreplace").decode()  # a file's may be no UTF-8
            print(f"{name}: {', '.join(f'{label} {share:.1%}' for label, share in found)}; {path}", flush=True)
    return status


def write(mask: np.ndarray, path: pathlib.Path, classes: int) -> None:
    """A mask uint8 [h, w] as a palette PNG."""
    from PIL import Image

    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(palette(classes))
    picture.save(path)
