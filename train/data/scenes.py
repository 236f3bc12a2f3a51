"""Images with boxes around objects, as sources find them, and the splits that training reads."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from train.data.pictures import THREADS
from train.data.source import IN_MEMORY_BYTES, Arrays, ArraySplit, LazySplit
from train.data.unreadable import Unreadable
from zoo.errors import ZooError
from zoo.inputs.detection import DetectionInputs, Framed


@dataclasses.dataclass(frozen=True)
class Box:
    """A box around an object (x0, y0, x1, y1), in pixels of its image, or in shares of its sides."""

    corners: tuple[float, float, float, float]
    label: str
    where: str  # its file and line, or whatever else finds it, for messages
    ignored: bool = False  # a crowd, or too difficult: neither learned nor counted, wherever it is found


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image and its boxes. `read` gives the image: a path, bytes or an array."""

    name: str
    read: Callable[[], Any]
    boxes: tuple[Box, ...]
    shares: bool = False  # whether the boxes are in shares of the image's sides


@dataclasses.dataclass
class Cut:
    """What was done to boxes that do not fit their images."""

    cut: dict[str, None] = dataclasses.field(default_factory=dict)  # where they are; each once, also if read again
    empty: dict[str, None] = dataclasses.field(default_factory=dict)

    def notes(self) -> list[str]:
        kinds = {"that reach beyond their images are cut at the border": self.cut}
        kinds |= {"without area in their images are left out": self.empty}
        return [f"{len(places)} boxes {what}, such as {next(iter(places))}" for what, places in kinds.items() if places]


def split_of_scenes(
    scenes: Sequence[Scene], inputs: DetectionInputs, most: int, unreadable: Unreadable, cut: Cut
) -> Any:
    """The scenes as a split whose examples have, beside what `DetectionInputs.batch` gives: `boxes` float32 [most, 4]
    in pixels of the frame, `box_label` int32 [most], -1 for padding, and `box_ignored` bool [most]."""
    numbers = {label: number for number, label in enumerate(inputs.labels)}

    def example(scene: Scene) -> Any:
        try:
            framed = inputs.framed(scene.read())
        except ZooError as error:
            return ZooError(str(error).replace("the image", scene.name, 1))
        return framed, _arrays(scene, framed, numbers, most, cut)

    if len(scenes) * math.prod(inputs.shape) >= IN_MEMORY_BYTES:

        def decode(rows: list[int]) -> Arrays:
            found = [example(scenes[row]) for row in rows]
            for one in found:
                if isinstance(one, ZooError):
                    raise one
            return _joined(found)

        return LazySplit(len(scenes), decode)
    with ThreadPoolExecutor(THREADS) as pool:
        found = []
        for scene, one in zip(scenes, pool.map(example, scenes), strict=True):
            if isinstance(one, ZooError):
                unreadable.leave_out(scene.name, str(one))
            else:
                found.append(one)
    return ArraySplit(_joined(found)) if found else None


def _joined(found: Sequence[tuple[Framed, Arrays]]) -> Arrays:
    frames, arrays = zip(*found, strict=True)
    return {
        **DetectionInputs.of_frames(frames),
        **{name: np.stack([one[name] for one in arrays]) for name in arrays[0]},
    }


def _arrays(scene: Scene, framed: Framed, numbers: Mapping[str, int], most: int, cut: Cut) -> Arrays:
    """The arrays of a scene's boxes."""
    boxes = np.zeros((most, 4), np.float32)
    labels, ignored = np.full(most, -1, np.int32), np.zeros(most, bool)
    (height, width), count = framed.of, 0
    limits = np.array([width, height, width, height], np.float64)
    for box in scene.boxes:
        corners = np.array(box.corners, np.float64) * (limits if scene.shares else 1)
        inside = np.clip(corners, 0, limits)
        if np.any(inside[2:] - inside[:2] <= 0):
            cut.empty[box.where] = None
            continue
        if np.abs(inside - corners).max() > 1:
            cut.cut[box.where] = None
        boxes[count], labels[count], ignored[count] = inside * framed.scale, numbers[box.label], box.ignored
        count += 1
    return {"boxes": boxes, "box_label": labels, "box_ignored": ignored}


def checked(corners: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    """The corners of a box as numbers; ZooError, with the place, for others and for swapped sides."""
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)
    except (TypeError, ValueError):
        raise ZooError(f"{where}: a box must be four numbers, not {[*corners]!r:.80}") from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ZooError(f"{where}: a box must be four finite numbers, not {[*corners]!r:.80}")
    if x1 < x0 or y1 < y0:
        raise ZooError(
            f"{where}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} has swapped sides: (x0, y0) is the top left corner"
        )
    return x0, y0, x1, y1


def labels_of(scenes: Mapping[str, Sequence[Scene]], name: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes of the training scenes' boxes, sorted; ZooError where other splits have more, with the place."""
    labels = known or sorted({box.label for scene in scenes.get("train", ()) for box in scene.boxes})
    for split in scenes.values():
        for scene in split:
            for box in scene.boxes:
                if box.label not in labels:
                    lacks = "the model has" if known else "the training images have"
                    raise ZooError(f"{box.where}: {lacks} no class {box.label!r}; there are {', '.join(labels)}")
    if not labels:
        raise ZooError(f"{name} has no box in its training images")
    return tuple(labels)


def counts(scenes: Mapping[str, Sequence[Scene]]) -> str:
    """How many images and boxes each split has, and how many boxes each class."""
    parts = [f"{split} {len(of)} images, {sum(len(s.boxes) for s in of)} boxes" for split, of in scenes.items()]
    classes = collections.Counter(box.label for of in scenes.values() for scene in of for box in scene.boxes)
    return "; ".join([*parts, ", ".join(f"{label} {n}" for label, n in classes.most_common(20))])
