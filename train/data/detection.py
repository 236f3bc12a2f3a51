"""Images with boxes around objects: a detection set of TFDS, COCO's JSON, Pascal VOC's XML, or a CSV of boxes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data import box_files, tfds
from train.data.image_form import parse_size, statistics
from train.data.scenes import Box, Cut, Scene, counts, labels_of, split_of_scenes
from train.data.source import Dataset, TfdsSource
from train.data.splits import SPLITS
from train.data.unreadable import Unreadable
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.inputs.detection import DetectionInputs


@dataclasses.dataclass(frozen=True)
class DetectionData(TfdsSource):
    """Examples have `image` uint8 [H, W, C], `boxes` float32 [M, 4] (x0, y0, x1, y1 in its pixels), `box_label` int32
    [M], -1 for padding, `box_ignored` bool [M], and `size` and `scale` as of `DetectionInputs.batch`."""

    name: str = "bccd"  # a detection set of TFDS, with a feature objects of bbox and label
    # instead of a name: a folder with COCO's JSON or Pascal VOC's XML files, one such JSON, or a CSV of a box a row
    # with the columns file, label, x0, y0, x1, y1 and, if you like, split
    path: str | None = None
    image_size: int | str | None = None  # the frame into which images are scaled, a side or HEIGHTxWIDTH, in pixels
    most_unreadable: float = 0.01  # the share of images that may be unreadable and are left out

    def check(self) -> None:
        super().check()
        parse_size(self.image_size)
        at_least("data.most-unreadable", self.most_unreadable, 0)

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """See `Source.load`. A held-out split is the end of train where the data have none."""
        given: Any = inputs
        known = self.inputs_of_kind(inputs, "detection") if getattr(inputs, "labels", ()) else None
        if self.path is not None:
            name, scenes = box_files.load(self.path)
        else:
            name, scenes = self.name, dict(tfds_scenes(self.name, self.tfds_dir()))
        if not scenes.get("train"):
            raise ZooError(f"{name} has no images to train on; it has the splits {', '.join(scenes) or 'none'}")
        labels = labels_of(scenes, name, () if known is None else known.labels)
        if known is None:
            size = parse_size(self.image_size) or (model_shape[0], model_shape[1])
            if given is not None and len(given.mean) != 3:
                raise ZooError(f"{name} has colour images; the weights are for images of {len(given.mean)} channels")
            mean, std = (given.mean, given.std) if given is not None else ((0.0,) * 3, (1.0,) * 3)
            form = DetectionInputs((*size, 3), mean, std, labels)
        else:
            form = known
        if "validation" not in scenes and (held := int(len(scenes["train"]) * self.validation_fraction)):
            scenes = {**scenes, "train": scenes["train"][:-held], "validation": scenes["train"][-held:]}
        most = max(1, *(len(scene.boxes) for of in scenes.values() for scene in of))
        unreadable, cut = Unreadable(self.most_unreadable, sum(map(len, scenes.values()))), Cut()
        splits = {
            split: split_of_scenes(scenes[split], form, most, unreadable, cut) for split in SPLITS if scenes.get(split)
        }
        unreadable.check()
        if inputs is None:
            _, mean, std = statistics(splits["train"])
            form = dataclasses.replace(form, mean=mean, std=std)
        found = [counts(scenes), *cut.notes(), *unreadable.notes()]
        held_out = (splits.get("validation"), splits.get("test"))
        return Dataset(name, splits["train"], *held_out, form, tuple(found), unreadable)


def tfds_scenes(name: str, data_dir: str) -> Mapping[str, list[Scene]]:
    """The scenes of each split of a TFDS set; ZooError where it has no boxes with labels."""
    labels, splits = tfds.load_boxes(name, data_dir)
    return {
        split: [_tfds_scene(name, split, row, source, labels) for row in range(len(source))]
        for split, source in splits.items()
    }


def _tfds_scene(name: str, split: str, row: int, source: Any, labels: tuple[str, ...]) -> Scene:
    where, objects = f"{name}, split {split}, example {row}", source[row]["objects"]
    crowds = objects.get("is_crowd", objects.get("is_difficult", [False] * len(objects["label"])))
    boxes = []
    for i, ((y0, x0, y1, x1), label, crowd) in enumerate(zip(objects["bbox"], objects["label"], crowds, strict=True)):
        place = f"{where}, box {i}"
        boxes.append(Box(box_files.checked((x0, y0, x1, y1), place), labels[int(label)], place, bool(crowd)))
    return Scene(where, functools.partial(_image, source, row), tuple(boxes), shares=True)


def _image(source: Any, row: int) -> np.ndarray:
    return source[row]["image"]
