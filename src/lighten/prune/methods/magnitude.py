"""Magnitude: a weight matters as much as it is large. Needs nothing but the weights; the baseline to beat.

Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
`l1` and `l2` are the same for single weights, and rank blocks by the norm of that order.
"""

from dataclasses import dataclass

from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.methods.layer_data import LayerData, relative, weight_importance


@dataclass(frozen=True, kw_only=True)
class MagnitudeConfig:
    """order: 1 or 2; a block counts as the sum of |w|^order."""

    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"order={self.order} is not 1 or 2. Use 1 for |w|, 2 for w².")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """No settings."""


@weight_importance("magnitude", MagnitudeConfig)
def magnitude(layer: LayerData, config: MagnitudeConfig) -> Tensor:
    """|w|^order over its mean in the layer, [out, columns]."""
    return relative(relative(layer.weight.abs()).pow(config.order))  # the inner one: large weights must not overflow


@weight_importance("l1", NormConfig)
def l1(layer: LayerData, config: NormConfig) -> Tensor:
    """magnitude of order 1."""
    return magnitude(layer, MagnitudeConfig(order=1))


@weight_importance("l2", NormConfig)
def l2(layer: LayerData, config: NormConfig) -> Tensor:
    """magnitude of order 2."""
    return magnitude(layer, MagnitudeConfig(order=2))
