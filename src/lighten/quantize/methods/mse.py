"""MSE: the narrower range of each group at which rounding to nearest and clipping together cost least.

Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, sec. 3.1 ("MSE based range
setting"), for every group of weights by itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight
from lighten.quantize.formats.integer import IntegerFormat, round_on_grids
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import Moments
from lighten.registry import quantizer


@dataclass(frozen=True, kw_only=True)
class MSEConfig(MethodConfig):
    """candidates: ranges tried, evenly from the whole down to `narrowest` of it."""

    integers_only: ClassVar[bool] = True
    candidates: int = 40
    narrowest: float = 0.3

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ConfigError(f"candidates={self.candidates} is below 2, and the first is rtn. The default is 40.")
        if not 0 < self.narrowest < 1:
            raise ConfigError(f"narrowest={self.narrowest} is outside 0..1. The default is 0.3.")


@quantizer("mse", MSEConfig)
def mse(
    weight: Tensor, form: Format, group_size: int | None, config: MSEConfig, moments: Moments | None = None
) -> QuantizedWeight:
    """weight [rows, columns], group by group; no group is further from its weights than by rounding to nearest."""
    return round_on_grids(weight, form, group_size, lambda groups, integer: best_grid(groups, integer, config))


def best_grid(groups: Tensor, form: IntegerFormat, config: MSEConfig) -> Grid:
    """The grid of each of groups [n, size] float32 with the least squared error; of equals the widest."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = form.fit(groups)
    least = _error(groups, form, best)
    for share in torch.linspace(1.0, config.narrowest, config.candidates).tolist()[1:]:
        grid = form.grid_of_range(low * share, high * share)
        error = _error(groups, form, grid)
        better = error < least
        least = torch.where(better, error, least)
        zero = None
        if grid.zero_point is not None and best.zero_point is not None:
            zero = torch.where(better, grid.zero_point, best.zero_point)
        best = Grid(torch.where(better, grid.scale, best.scale), zero)
    return best


def _error(groups: Tensor, form: IntegerFormat, grid: Grid) -> Tensor:
    """[n, 1] in units of the largest of the group: squares of float32 weights may overflow."""
    size = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return ((form.decode(form.encode(groups, grid), grid) - groups) / size).square().sum(-1, keepdim=True)
