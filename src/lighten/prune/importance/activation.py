"""Activation: a channel matters as much as it is active, by the mean |x| of what the next layers read.

Source: Hu et al., "Network Trimming", arXiv:1607.03250. Differs: they count zeros, which is blind without ReLU.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lighten.prune.importance.unit_data import UnitData, unit_importance


@dataclass(frozen=True, kw_only=True)
class ActivationConfig:
    """No settings."""

    needs: ClassVar[str] = "activations"


@unit_importance("activation", ActivationConfig)
def activation(units: UnitData, config: ActivationConfig) -> Tensor:
    """Mean |x| [n_units], higher = keep."""
    assert units.activity is not None
    return units.activity
