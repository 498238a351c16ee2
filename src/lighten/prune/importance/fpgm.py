"""FPGM: a filter near the geometric median of its layer is one that the others can stand in for.

Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
arXiv:1811.00250, eq. 5: the filter with the smallest sum of distances to all others is nearest to the median.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.registry import importance


@dataclass(frozen=True, kw_only=True)
class FPGMConfig:
    """No settings."""


@importance("fpgm", FPGMConfig)
def fpgm(rows: Tensor, config: FPGMConfig) -> Tensor:
    """rows [n_units, elements]: the weights of each unit. Returns the sum of distances [n_units], higher = keep."""
    rows = rows.float()
    # The matrix-product shortcut of cdist loses the small distances, which are the ones that decide.
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
