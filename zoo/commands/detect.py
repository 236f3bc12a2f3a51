"""python -m zoo predict of a run that detects objects: the boxes of each image, and a picture with them."""

import json
import pathlib
import sys
from collections.abc import Iterable

from zoo.detector import Detector, draw
from zoo.errors import ZooError
from zoo.run import Run


def detect(run: Run, files: Iterable[str], threshold: float, as_json: bool, overwrite: bool) -> int:
    """Prints a line for each object with a score of at least the threshold: label, score, and x0, y0, x1, y1 in pixels;
    writes the image with its boxes to the current folder, photo_boxes.png of photo.jpg. The exit status, 2 where an
    image cannot be read or a picture not written.

    A picture that exists is an error unless `overwrite`; so are two images of one name.
    """
    detector, status, written = Detector(run, threshold), 0, set()
    for file in files:
        path = pathlib.Path(f"{pathlib.Path(file).stem}_boxes.png")
        try:
            if path in written:
                raise ZooError(f"{file!r} would have the picture {str(path)!r} of another image; predict it elsewhere")
            if path.exists() and not overwrite:
                raise ZooError(f"{str(path)!r} exists; move it away, or replace it with --overwrite")
            (found,) = detector([file])
            draw(file, found, run.inputs.labels, path)
        except ZooError as error:
            status = 2
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        written.add(path)
        counts = {label: sum(one.label == label for one in found) for label in run.inputs.labels}
        if as_json:
            objects = [
                {"label": one.label, "score": round(one.score, 6), "box": [round(side, 2) for side in one.box]}
                for one in found
            ]
            print(json.dumps({"file": file, "picture": str(path), "counts": counts, "objects": objects}), flush=True)
            continue
        name = file.encode("utf-8", "backslashreplace").decode()  # a file's may be no UTF-8
        print(f"{name}: {', '.join(f'{label} {n}' for label, n in counts.items() if n) or 'nothing'}; {path}")
        for one in found:
            print(f"  {one.label} {one.score:.1%} at {', '.join(f'{side:.0f}' for side in one.box)}", flush=True)
    return status
