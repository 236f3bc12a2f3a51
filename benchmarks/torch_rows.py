"""Examples in memory for PyTorch's DataLoader, one gather per batch. Imports no JAX, for the DataLoader's processes."""

import torch


class Rows:
    """A data set of arrays; row i of each is example i."""

    def __init__(self, arrays: dict[str, torch.Tensor]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {name: array[torch.tensor(indices)] for name, array in self.arrays.items()}


def as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collate function for examples that are a batch already."""
    return batch
