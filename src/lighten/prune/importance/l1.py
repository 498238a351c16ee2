"""L1 importance: a unit matters as much as the sum of the magnitudes of the weights that make it.

Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
"""

from dataclasses import dataclass

from torch import Tensor

from lighten.registry import importance


@dataclass(frozen=True, kw_only=True)
class L1Config:
    """No settings."""


@importance("l1", L1Config)
def l1(rows: Tensor, config: L1Config) -> Tensor:
    """rows [n_units, elements]: the weights of each unit. Returns [n_units], higher = keep."""
    return rows.abs().sum(dim=1)
