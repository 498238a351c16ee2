"""Taylor: a channel matters as much as the loss changes when it goes, by the expansion of the loss around the weights.

Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, eq. 7 and 8. Without its
unit the loss of a sample changes by −Σ w g to first order: order 1 is the mean square of that over the samples. Order 2
adds ½ wᵀ H w, with the empirical Fisher matrix for H, so that wᵀ H w is the mean of (Σ w g)², and squares the sum.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.importance.unit_data import UnitData, unit_importance


@dataclass(frozen=True, kw_only=True)
class TaylorConfig:
    """order: 1 or 2, of the expansion."""

    needs: ClassVar[str] = "gradients"
    comparable: ClassVar[bool] = True
    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"order={self.order} is not 1 or 2, the orders of the expansion.")


@dataclass(frozen=True, kw_only=True)
class Taylor2Config:
    """No settings."""

    needs: ClassVar[str] = "gradients"
    comparable: ClassVar[bool] = True


@unit_importance("taylor", TaylorConfig)
def taylor(units: UnitData, config: TaylorConfig) -> Tensor:
    """[n_units], higher = keep, in squared units of the loss."""
    assert units.products is not None
    if config.order == 1:
        return units.products.square().mean(0)
    return (units.products.square().mean(0) / 2 - units.products.mean(0)).square()


@unit_importance("taylor2", Taylor2Config)
def taylor2(units: UnitData, config: Taylor2Config) -> Tensor:
    """taylor of order 2."""
    return taylor(units, TaylorConfig(order=2))
