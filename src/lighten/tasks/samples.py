"""Samples: a data set that lives in one tensor and is fetched a batch at a time.

DataLoader hands a whole batch of indices to ``__getitems__``, so a transform runs once a batch, vectorized, and not
once a sample in Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Transform = Callable[[Tensor], Tensor]


class Samples(Dataset[Any]):
    """inputs [n, …] with targets [n], or inputs alone (targets None), seen through transform.

    transform: batch [n, …] -> batch [n, …]; it may draw from torch's global generator (augmentation).
    """

    def __init__(self, inputs: Tensor, targets: Tensor | None = None, transform: Transform | None = None) -> None:
        assert targets is None or len(targets) == len(inputs), "one target a sample"
        self.inputs = inputs
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The samples at indices, transformed as one batch."""
        rows = torch.tensor(indices)
        batch = self.inputs[rows]
        if self.transform is not None:
            batch = self.transform(batch)
        if self.targets is None:
            return list(batch)
        return list(zip(batch, self.targets[rows], strict=True))
