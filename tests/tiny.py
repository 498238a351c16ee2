"""A task that trains in a second: which quadrant of an 8×8 image is bright?"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from lighten.recover.finetune import FineTuneConfig, fine_tune
from lighten.task import Task


class Inputs(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


class TinyNet(nn.Module):
    """Wide enough that most of it can go, with a hard-coded view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.fc(F.max_pool2d(x, 2).view(-1, 32 * 16))


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=make)
    x = torch.rand(n, 1, 8, 8, generator=make)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
    return x, labels


@functools.cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    recipe = FineTuneConfig(epochs=4, lr=0.05, batch_size=32)
    return fine_tune(TinyNet(), TensorDataset(*images(512, 0)), F.cross_entropy, recipe)


def tiny_task(**changes: object) -> Task:
    settings: dict[str, object] = {
        "name": "tiny",
        "model": trained(),
        "example_inputs": (torch.zeros(1, 1, 8, 8),),
        "calibration": Inputs(images(64, 1)[0]),
        "selection": TensorDataset(*images(200, 2)),
        "holdout": TensorDataset(*images(200, 3)),
        "train": TensorDataset(*images(512, 0)),
        "loss": F.cross_entropy,
    }
    return Task(**{**settings, **changes})
