"""Small models, each with one thing that makes naming or lowering hard."""

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class Several(Logits):
    """Inputs named like an output and like an inner tensor; outputs that repeat, that are inputs, and that are not."""

    def forward(self, output: Tensor, linear: Tensor) -> dict[str, Tensor | None]:
        y = self.linear(output)
        return {"first": y, "again": y, "input": linear, "none": None, "sum": (y + linear).sum()}


class Branches(Logits):
    """Two branches that read a tensor from outside, by a name that the input has as well."""

    def forward(self, linear: Tensor) -> Tensor:
        y = self.linear(linear)
        return torch.cond(linear.sum() > 0, lambda a: a + 1, lambda a: a - 1, (y,))


class Axes(nn.Module):
    """The batch comes back multiplied, and on another axis."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.flatten(0, 1) * 2, x.permute(1, 0, 2) + 1, y.relu()


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 4).flatten(1) * 2


class Keyed(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return x["left"] - 2 * x["right"]


class Constants(nn.Module):
    def forward(self, x: Tensor, n: int, mask: Tensor | None = None) -> Tensor:
        return x * n if mask is None else x * mask


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))


class MaskedLogits(Logits):
    """Scores of what may not be chosen are minus infinity."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).masked_fill(torch.tensor([True, False, False]), float("-inf"))


class Airy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


class Outlandish(nn.Module):
    """Holds one operator that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.airy = Airy()

    def forward(self, x: Tensor) -> Tensor:
        return self.airy(self.linear(x))
