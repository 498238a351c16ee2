"""Layers whose inputs are correlated, as those behind a ReLU or a bottleneck are."""

import torch
from torch import Tensor

from lighten.quantize.formats import IntegerFormat
from lighten.quantize.moments import MomentAccumulator, Moments

INT4 = IntegerFormat(bits=4, symmetric=False)


def problem(rows: int = 24, columns: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Moments]:
    """weight [rows, columns], inputs [samples, columns] of very different sizes, and their moments."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random) * 0.02
    mixed = torch.randn(600, columns // 2, generator=random) @ torch.randn(columns // 2, columns, generator=random)
    x = mixed.relu() * (0.2 + 4 * torch.rand(columns, generator=random) ** 4)
    return weight, x, moments_of(x)


def moments_of(x: Tensor) -> Moments:
    """Of inputs x [samples, columns], or [parts, samples, columns]."""
    accumulator = MomentAccumulator()
    accumulator.add(x if x.dim() == 3 else x[None])
    return accumulator.moments()
