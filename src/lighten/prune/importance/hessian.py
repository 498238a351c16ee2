"""Hessian: what the loss rises by when a channel goes, by the diagonal of the Hessian: Σ ½ w² h.

Source: LeCun, Denker & Solla, "Optimal Brain Damage", NIPS 1989, summed over what makes the channel. h is the empirical
Fisher diagonal, the mean square of the samples' gradients.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lighten.prune.importance.unit_data import UnitData, unit_importance


@dataclass(frozen=True, kw_only=True)
class HessianConfig:
    """No settings."""

    needs: ClassVar[str] = "gradients"
    comparable: ClassVar[bool] = True


@unit_importance("hessian", HessianConfig)
def hessian(units: UnitData, config: HessianConfig) -> Tensor:
    """½ Σ w² h [n_units], higher = keep, in units of the loss."""
    assert units.squares is not None
    return units.squares / 2
