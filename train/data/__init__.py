"""Where examples come from, and the pure function from a step to its batch."""

from train.data.batches import Batches, eval_batches, eval_steps, train_batches
from train.data.dataset import Dataset, Split, load_dataset

__all__ = ["Batches", "Dataset", "Split", "eval_batches", "eval_steps", "load_dataset", "train_batches"]
