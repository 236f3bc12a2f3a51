"""Labelled images: digits (built in), any labelled image set of TFDS, class folders, a table of files, or arrays."""

import dataclasses
import pathlib
from collections.abc import Collection

from train.data import digits, image_arrays, image_folder, image_table, tfds
from train.data.balance import balanced
from train.data.image_source import Found, ImageSource
from train.data.source import Dataset, TfdsSource
from train.settings import at_least
from zoo.errors import ZooError
from zoo.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class ImageData(ImageSource, TfdsSource):
    """Images with a class each."""

    name: str = "digits"  # digits (built in), or any labelled image set of TFDS
    # instead of a name: a folder of class folders; a CSV with the columns file, label and, if you like, split; an .npz
    # with x_train and y_train, or images and labels; an .npy of images beside a labels.npy
    path: str | None = None
    train_examples: int | None = None  # only so many training examples, the first ones; default: all
    balanced: bool = False  # training batches have every class as often

    def check(self) -> None:
        super().check()
        if self.train_examples is not None:
            at_least("data.train-examples", self.train_examples, 1)

    def load(
        self, model_shape: tuple[int, ...], inputs: Inputs | None = None, replaced: Collection[str] = ()
    ) -> Dataset:
        """See `Source.load`. `replaced` are files that a resumed run could not read, which keep their places."""
        known = self.inputs_of_kind(inputs, "image")
        labels = () if known is None else known.labels
        dataset = self.dataset(self._found(labels, replaced), model_shape, known)
        train, most = dataset.train, self.train_examples
        if most is not None:
            if most > train.size:
                raise ZooError(f"data.train-examples is {most}, but {dataset.name} has {train.size} to train on")
            train = train.part(0, most)
        train = balanced(train, dataset.name) if self.balanced else train
        return dataclasses.replace(dataset, train=train)

    def _found(self, labels: Collection[str], replaced: Collection[str]) -> Found:
        if self.path is None:
            return digits.found() if self.name == "digits" else tfds.load(self.name, self.tfds_dir())
        path = pathlib.Path(self.path).expanduser()
        if path.is_dir():
            return image_folder.load(self.path, labels, replaced)
        if path.suffix.lower() in image_arrays.SUFFIXES:
            return image_arrays.load(self.path, labels)
        if path.is_file() and path.suffix.lower() in image_table.SUFFIXES:
            return image_table.load(self.path, labels, replaced)
        raise ZooError(f"data.path {self.path!r} is not a folder of images, a table (CSV), or arrays (.npz, .npy)")
