"""Half-quadratic quantization (HQQ): a grid that fits most weights well and lets a few be off. Needs no data.

Source: Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023
(mobiusml.github.io/hqq_blog). It minimizes Σ |W - Ŵ|^p, p < 1, by splitting off errors E: E is the shrunken residual,
and the grid is fitted to W - E.
Differs: zero points are integers, so that a weight of zero stays zero. The fit of the zero point alone then moves
nothing, so the scale is fitted, too, by least squares. Residuals are measured in steps, which makes `beta` independent
of the weights' size; a group keeps the best grid it has seen, so it never ends worse than it began. p is 1/2 rather
than 0.7, for which square roots do. The fit starts from the whole range and stays near it: narrower ranges have a
smaller Σ |W - Ŵ|^p still, but at the cost of the outliers, and the squared error then rises above that of rtn.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight, round_up_to
from lighten.quantize.formats.integer import IntegerFormat, round_on_grids
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import Moments
from lighten.registry import quantizer

LEAST = 1e-6  # steps; below it a residual is none, and its power would overflow


@dataclass(frozen=True, kw_only=True)
class HQQConfig(MethodConfig):
    """p: exponent of the error, 0 < p < 1: the smaller, the less outliers count. beta: how much residual counts as
    inlier at first, in steps^(p-2); grows by the factor kappa every iteration, of which there are `iterations`."""

    integers_only: ClassVar[bool] = True
    p: float = 0.5
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ConfigError(f"p={self.p} is outside 0..1. The default is 0.5; 0.7 is the paper's.")
        if self.beta <= 0 or self.kappa < 1:
            raise ConfigError(f"beta={self.beta} must be above 0 and kappa={self.kappa} at least 1.")
        if self.iterations < 1:
            raise ConfigError(f"iterations={self.iterations} is below 1. Use rtn for none.")


@quantizer("hqq", HQQConfig)
def hqq(
    weight: Tensor, form: Format, group_size: int | None, config: HQQConfig, moments: Moments | None = None
) -> QuantizedWeight:
    """weight [rows, columns], group by group."""
    return round_on_grids(weight, form, group_size, lambda groups, integer: fit(groups, integer, config))


def fit(groups: Tensor, form: IntegerFormat, config: HQQConfig) -> Grid:
    """The grid of each of groups [n, size] float32."""
    start = form.fit(groups)
    lowest = int(start.zero_point is None)
    zero = torch.full_like(start.scale, form.middle) if start.zero_point is None else start.zero_point
    scale, best_scale, best_zero, best = start.scale, start.scale, zero, torch.full_like(start.scale, torch.inf)
    beta = config.beta
    for _ in range(config.iterations + 1):
        residual = groups / scale
        levels = (residual + zero).round_().clamp_(lowest, form.largest).sub_(zero)
        residual -= levels
        size = residual.abs().clamp_(min=LEAST)
        power = size.rsqrt() if config.p == 0.5 else size.pow(config.p - 1)  # |r|^(p-1)
        error = (size * power).sum(-1, keepdim=True) * scale**config.p
        better = error < best
        if not better.any():
            break
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        # r - shrink(r): the part of a residual that is no outlier.
        inlier = residual.mul_(power.div_(size).div_(beta).clamp_(max=1))
        if start.zero_point is not None:
            moved = (zero - inlier.mean(-1, keepdim=True)).round_().clamp_(0, form.largest)
            levels += zero - moved
            zero = moved
        squares = levels.square().sum(-1, keepdim=True)
        factor = 1 + (levels * inlier).sum(-1, keepdim=True) / squares.clamp(min=1)
        scale = round_up_to(torch.where(factor > 0, scale * factor, scale), form.scale_dtype)
        beta *= config.kappa
    return Grid(best_scale, None if start.zero_point is None else best_zero)
