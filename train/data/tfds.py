"""Any labelled image set and any text set of TensorFlow Datasets, by name, read without TensorFlow."""

import logging
import math
import pathlib
from typing import Any

import numpy as np

from train.data.source import IN_MEMORY_BYTES, Arrays, ArraySplit, LazySplit
from zoo.errors import ZooError, unknown
from zoo.inputs.image import fit, open_image

BUILT_IN = ("digits", "stdlib", "dates", "docstrings")  # sets that are not TFDS's


def load(
    name: str, data_dir: str, size: tuple[int, int], resize: bool = False
) -> tuple[str, dict[str, ArraySplit | LazySplit], list[str]]:
    """Name, splits, labels of a TFDS set; prepared in `data_dir`, or downloaded to it where it is not.

    Images of varying size, and all where `resize` is set, are brought to `size` (height, width). Splits named test but
    without labels (-1) are left out. ZooError: unknown name (with the nearest), not preparable, no image, no label.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    image: Any = features.get("image")
    label: Any = features.get("label")
    if image is None or not hasattr(label, "num_classes"):
        has = ", ".join(sorted(features)) or "neither"
        raise ZooError(f"{name} is no labelled image set: it needs features image and label (a class), it has {has}")
    labels = [str(label_name) for label_name in label.names]
    shape = tuple(image.shape)
    if resize or None in shape[:2] or shape[-1] is None:
        shape = (*size, shape[-1] or 3)
    splits: dict[str, ArraySplit | LazySplit] = {}
    for split in ("train", "validation", "test"):
        if split in builder.info.splits:
            read = _split(builder, split, shape)
            if split == "test" and read.read(np.arange(1))["label"][0] < 0:
                continue  # a contest's test set, whose labels are kept back
            splits[split] = read
    if "train" not in splits:
        raise ZooError(f"{name} has no split train; it has {', '.join(builder.info.splits)}")
    return name, splits, labels


def load_texts(name: str, data_dir: str) -> dict[str, list[str]]:
    """The texts of each split of a TFDS set: its first feature of text."""
    builder = _builder(name, data_dir)
    feature = _text_feature(name, builder)
    splits = [split for split in ("train", "validation", "test") if split in builder.info.splits]
    return {split: [example[feature].decode("utf-8") for example in builder.as_data_source(split)] for split in splits}


def load_labelled_texts(name: str, data_dir: str) -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
    """Name, pairs of text and label by split, labels of a TFDS set. Splits without labels (-1) are left out."""
    builder = _builder(name, data_dir)
    feature = _text_feature(name, builder)
    label: Any = dict(builder.info.features.items()).get("label")
    if not hasattr(label, "num_classes"):
        raise ZooError(f"{name} is no labelled text set: it has no feature label that is a class")
    splits = {}
    for split in ("train", "validation", "test"):
        if split in builder.info.splits:
            source = builder.as_data_source(split)
            pairs = [(example[feature].decode("utf-8"), int(example["label"])) for example in source]
            if pairs and pairs[0][1] >= 0:
                splits[split] = pairs
    if "train" not in splits:
        raise ZooError(f"{name} has no split train; it has {', '.join(builder.info.splits)}")
    return name, splits, [str(label_name) for label_name in label.names]


def load_pairs(name: str, data_dir: str, source: str | None, target: str | None) -> dict[str, list[tuple[str, str]]]:
    """The texts of two features of a TFDS set by split, by default those that it names itself as input and target.

    A pair of which a side is empty is left out. ZooError, with the texts that there are, where a feature is none.
    """
    builder = _builder(name, data_dir)
    texts = _texts(builder)
    own = builder.info.supervised_keys or (None, None)
    keys = [str(key or default) for key, default in zip((source, target), own[:2], strict=True)]
    wrong = [key for key in keys if key not in texts]
    if wrong or keys[0] == keys[1]:
        raise ZooError(
            f"{name} has no pair of texts {keys[0]!r} and {keys[1]!r}: data.source and data.target must be two of "
            f"{', '.join(sorted(texts)) or 'its texts, of which it has none'}"
        )
    splits = {}
    for split in ("train", "validation", "test"):
        if split in builder.info.splits:
            rows = [[example[key].decode("utf-8") for key in keys] for example in builder.as_data_source(split)]
            splits[split] = [(first, second) for first, second in rows if first.strip() and second.strip()]
    if not splits.get("train"):
        raise ZooError(f"{name} has no split train; it has {', '.join(builder.info.splits)}")
    return splits


def _texts(builder: Any) -> list[str]:
    """The features of a set that are texts."""
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    return [key for key, feature in features.items() if type(feature).__name__ == "Text"]


def _text_feature(name: str, builder: Any) -> str:
    texts = _texts(builder)
    if not texts:
        features = builder.info.features
        has = ", ".join(sorted(features)) if hasattr(features, "items") else "none"
        raise ZooError(f"{name} is no text set: of its features {has} none is text")
    return texts[0]


def _split(builder: Any, split: str, shape: tuple[int, ...]) -> ArraySplit | LazySplit:
    source = builder.as_data_source(split)

    def decode(indices: list[int]) -> Arrays:
        examples = source.__getitems__(indices)
        images = [_fitted(example["image"], shape) for example in examples]
        return {"image": np.stack(images), "label": np.array([e["label"] for e in examples], np.int32)}

    if len(source) * math.prod(shape) >= IN_MEMORY_BYTES:
        return LazySplit(len(source), decode)
    arrays: Arrays = {"image": np.empty((len(source), *shape), np.uint8), "label": np.empty(len(source), np.int32)}
    for start in range(0, len(source), 1024):
        piece = decode(list(range(start, min(start + 1024, len(source)))))
        for key, array in arrays.items():
            array[start : start + 1024] = piece[key]
    return ArraySplit(arrays)


def _fitted(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if image.shape == shape:
        return image
    return fit(open_image(image, shape[-1]), (shape[0], shape[1]))


def _builder(name: str, data_dir: str) -> Any:
    """The prepared builder of a set; looks at the folder before TFDS does, whose own errors are long."""
    for noisy in ("absl", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    base = name.split("/")[0].split(":")[0]
    prepared = sorted(path.name for path in pathlib.Path(data_dir).glob("*") if path.is_dir())
    try:
        if base in prepared:
            builder = tfds.builder(name, data_dir=data_dir)
            if builder.info.splits:
                return builder
        known = tfds.list_builders(with_community_datasets=False)
        if base not in known:
            raise unknown("data set", name, {*known, *prepared, *BUILT_IN})
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(file_format="array_record")
        return builder
    except ZooError:
        raise
    except Exception as error:  # TFDS wraps whatever a set's own script raises
        if isinstance(error, ImportError) or "tensorflow" in str(error).lower():
            why = "TFDS needs TensorFlow to prepare it (not to read it): pip install tensorflow"
        else:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ZooError(f"{name} is not prepared in {data_dir!r} and could not be: {why}") from None
