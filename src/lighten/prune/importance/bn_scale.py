"""Batch norm scale: a channel matters as much as the |γ| that multiplies it.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519 (there after
training with an L1 penalty on γ).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lighten.prune.importance.unit_data import UnitData, unit_importance


@dataclass(frozen=True, kw_only=True)
class BNScaleConfig:
    """No settings."""

    needs: ClassVar[str] = "scale"


@unit_importance("bn-scale", BNScaleConfig)
def bn_scale(units: UnitData, config: BNScaleConfig) -> Tensor:
    """|γ| [n_units], higher = keep."""
    assert units.scale is not None
    return units.scale
