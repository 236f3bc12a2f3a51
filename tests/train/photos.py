"""Small images in folders, and what a source reads of them."""

import numpy as np
from PIL import Image

from train import ImageData
from zoo.inputs.image import ImageInputs

SHAPE = (8, 8, 3)
SHADES = {"cat": 10, "dog": 200}


def save(path, shade=10, size=(8, 8), mode="RGB", kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).convert(mode).save(path, kind)


def photos(root, classes=SHADES, n=6, **about):
    for number, name in enumerate(classes):
        for i in range(n):
            save(root / name / f"{i}.png", SHADES.get(name, 20 + 9 * number), **about)
    return root


def load(root, inputs=None, **settings):
    return ImageData(path=str(root), validation_fraction=0.0, **settings).load(SHAPE, inputs)


def inputs_of(labels, shape=SHAPE, **more):
    return ImageInputs(shape, (0.5,) * shape[2], (0.2,) * shape[2], tuple(labels), **more)


def everything(split):
    return split.read(np.arange(split.size))
