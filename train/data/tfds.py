"""Any labelled image set and any text set of TensorFlow Datasets, by name, read without TensorFlow."""

import dataclasses
import logging
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from train.data.image_source import Found
from train.data.pictures import Survey
from train.data.splits import SPLITS
from zoo.errors import ZooError, first_line, unknown

BUILT_IN = ("digits", "stdlib", "dates", "docstrings")  # sets that are not TFDS's


def load(name: str, data_dir: str) -> Found:
    """The pictures and the labels of a TFDS set; prepared in `data_dir`, or downloaded to it where it is not.

    ZooError: unknown name (with the nearest), not preparable, another format, no image, no label.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    if "image" not in features or "label" not in features:
        has = ", ".join(sorted(features)) or "neither"
        raise ZooError(f"{name} is no labelled image set: it needs features image and label (a class), it has {has}")
    labels, splits, notes = _labels(name, features["label"]), {}, []
    for split in SPLITS:
        if split in builder.info.splits:
            pictures = Records.of(name, builder, split, features["image"])
            if len(pictures):
                splits[split] = pictures
            else:
                notes.append(f"{name} has an empty split {split}, left out")
    if "train" not in splits:
        raise ZooError(f"{name} has no examples in a split train; it has {', '.join(builder.info.splits)}")
    return Found(name, splits, labels, tuple(notes))


def _labels(name: str, label: Any) -> tuple[str, ...]:
    """The names of a feature's classes; ZooError where it is no class."""
    dtype = str(getattr(label, "np_dtype", None) or getattr(label, "dtype", ""))
    if "bool" in dtype:
        return "False", "True"
    if not hasattr(label, "num_classes"):
        raise ZooError(f"{name}: the feature label is {type(label).__name__} {dtype}, not a class (ClassLabel)")
    if not label.num_classes:
        raise ZooError(f"{name}: the feature label does not say how many classes it has (num_classes)")
    return tuple(str(label_name) for label_name in label.names)


@dataclasses.dataclass(frozen=True)
class Records:
    """The labelled images of a split of a TFDS set, read as they are asked for."""

    title: str
    source: Any
    shape: tuple[int | None, ...]
    deep: bool
    numbers: np.ndarray | None = None  # of the labels, where they are not the set's own
    target = "label"

    @classmethod
    def of(cls, name: str, builder: Any, split: str, image: Any) -> "Records":
        import tensorflow_datasets as tfds

        dtype = np.dtype(image.np_dtype)
        encoded = dtype == np.uint16 and type(image).__name__ == "Image"  # which TFDS decodes with OpenCV alone
        decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
        source = _source(name, builder, split, decoders)
        return cls(f"{name}, split {split}", source, tuple(image.shape), dtype != np.uint8)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        try:
            examples = self.source.__getitems__(list(rows))
        except Exception as error:  # TFDS and the libraries under it have no errors of their own
            raise ZooError(f"{self.title} cannot be read: {first_line(error)}") from None
        labels = [int(example["label"]) for example in examples]
        if self.numbers is not None:
            labels = [-1 if label < 0 else int(self.numbers[label]) for label in labels]
        return [(example["image"], label) for example, label in zip(examples, labels, strict=True)]

    def name(self, row: int) -> str:
        return f"{self.title}, example {row}"

    def survey(self) -> Survey:
        height, width, channels = self.shape
        known = height is not None and width is not None
        sizes = np.array([[height, width]] if known else np.zeros((0, 2), int))
        return Survey(sizes, channels or 3, self.deep, own_size=known)

    def renumbered(self, numbers: np.ndarray, classes: int) -> "Records":
        return dataclasses.replace(self, numbers=numbers)


def load_boxes(name: str, data_dir: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The labels of a TFDS detection set, and the examples of each split, whose images are not decoded.

    ZooError for a set without a feature objects of boxes and labels.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    objects = getattr(features.get("objects"), "feature", {})
    if "image" not in features or not {"bbox", "label"} <= {*objects}:
        has = ", ".join(sorted(features)) or "neither"
        raise ZooError(
            f"{name} is no detection set: it needs features image, and objects of bbox and label; it has {has}"
        )
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    sources = {split: _source(name, builder, split, decoders) for split in SPLITS if split in builder.info.splits}
    return _labels(name, objects["label"]), {split: source for split, source in sources.items() if len(source)}


def load_texts(name: str, data_dir: str) -> dict[str, list[str]]:
    """The texts of each split of a TFDS set: its first feature of text."""
    builder = _builder(name, data_dir)
    feature = _text_feature(name, builder)
    return {split: [_text(name, row[feature]) for row in source] for split, source in _sources(name, builder)}


def load_labelled_texts(name: str, data_dir: str) -> tuple[str, dict[str, list[tuple[str, int]]], list[str]]:
    """Name, pairs of text and label by split, labels of a TFDS set. Texts without a label (-1) are left out."""
    builder = _builder(name, data_dir)
    feature = _text_feature(name, builder)
    label: Any = dict(builder.info.features.items()).get("label")
    if label is None:
        raise ZooError(f"{name} is no labelled text set: it has no feature label")
    labels, splits = _labels(name, label), {}
    for split, source in _sources(name, builder):
        pairs = [(_text(name, example[feature]), int(example["label"])) for example in source]
        splits[split] = [pair for pair in pairs if pair[1] >= 0]
        if unlabelled := len(pairs) - len(splits[split]):
            warnings.warn(f"{name}: left out {unlabelled:,} texts of the split {split} without a label", stacklevel=2)
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if "train" not in splits:
        raise ZooError(f"{name} has no labelled text in a split train; it has {', '.join(builder.info.splits)}")
    return name, splits, [*labels]


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZooError(f"{name} has a text that is not UTF-8: {content[:40]!r} ({first_line(error)})") from None


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
    for split, examples in _sources(name, builder):
        rows = [[_text(name, example[key]) for key in keys] for example in examples]
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


def _sources(name: str, builder: Any) -> Iterator[tuple[str, Any]]:
    """Each split that is not empty, and its examples."""
    for split in SPLITS:
        if split in builder.info.splits and len(source := _source(name, builder, split)):
            yield split, source


def _source(name: str, builder: Any, split: str, decoders: Any = None) -> Any:
    """The examples of a split by number; an empty list where it has none."""
    if not builder.info.splits[split].num_examples:
        return []
    stored = getattr(builder.info.file_format, "value", builder.info.file_format)
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError:
        raise ZooError(
            f"{name} in {str(builder.data_dir)!r} is stored as {stored}, which cannot be read by number: prepare it "
            "with download_and_prepare(file_format='array_record')"
        ) from None
    except Exception as error:  # TFDS and the libraries under it have no errors of their own
        raise ZooError(f"{name}: the split {split} cannot be read: {first_line(error)}") from None


def _builder(name: str, data_dir: str) -> Any:
    """The prepared builder of a set; looks at the folder before TFDS does, whose own errors are long."""
    for noisy in ("absl", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    base = name.split("/")[0].split(":")[0]
    prepared = sorted(path.name for path in pathlib.Path(data_dir).expanduser().glob("*") if path.is_dir())
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


def load_masks(name: str, data_dir: str) -> tuple[str, dict[str, "Masked"], list[str] | None, int]:
    """The name of a TFDS set of images and segmentation masks, its splits, the names of the masks' values 0, 1, ...,
    or None where it does not name them, and the channels of its images.

    ZooError for a set without the features image and segmentation_mask, and for one without a split train.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    if "image" not in features or "segmentation_mask" not in features:
        has = ", ".join(sorted(features)) or "neither"
        raise ZooError(f"{name} is no segmentation set: it needs features image and segmentation_mask, it has {has}")
    splits: dict[str, Masked] = {split: Masked(f"{name}, split {split}", s) for split, s in _sources(name, builder)}
    if "train" not in splits:
        raise ZooError(f"{name} has no examples in a split train; it has {', '.join(builder.info.splits)}")
    mask = features["segmentation_mask"]
    names = [str(label) for label in mask.names] if getattr(mask, "num_classes", None) else None
    return name, splits, names, features["image"].shape[-1] or 3


@dataclasses.dataclass(frozen=True)
class Masked:
    """Images and masks of a split of a TFDS set, read as they are asked for."""

    title: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> tuple[np.ndarray, "MaskArray"]:
        if row >= len(self):
            raise IndexError(row)
        try:
            example = self.source[row]
        except Exception as error:  # TFDS and the libraries under it have no errors of their own
            raise ZooError(f"{self.title} cannot be read: {first_line(error)}") from None
        return example["image"], MaskArray(f"{self.title}, example {row}", example["segmentation_mask"])


@dataclasses.dataclass(frozen=True)
class MaskArray:
    """A mask in memory, [h, w, 1]."""

    name: str
    array: np.ndarray

    def values(self) -> np.ndarray:
        """Whole numbers int32 [h, w]."""
        return self.array[..., 0].astype(np.int32)
