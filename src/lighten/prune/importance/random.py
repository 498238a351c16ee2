"""Random importance: the control that every criterion has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.registry import importance


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """seed: of the generator; the same seed ranks the same shape alike."""

    seed: int = 0


@importance("random", RandomConfig)
def random(rows: Tensor, config: RandomConfig) -> Tensor:
    """rows [n_units, elements] give only the count. Returns [n_units] in 0..1, higher = keep."""
    return torch.rand(len(rows), generator=torch.Generator().manual_seed(config.seed), dtype=rows.dtype)
