"""L2 importance: a unit matters as much as the Euclidean norm of the weights that make it.

Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710 (there with L1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.registry import importance


@dataclass(frozen=True, kw_only=True)
class L2Config:
    """No settings."""


@importance("l2", L2Config)
def l2(rows: Tensor, config: L2Config) -> Tensor:
    """rows [n_units, elements]: the weights of each unit. Returns [n_units], higher = keep."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms
