"""SignRound: learn where each weight rounds to and where each group clips, by the signs of the gradient alone.

Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs",
arXiv:2309.05516 (AutoRound). A weight has an offset V in -0.5..0.5 that is added before rounding, a group shares alpha
and beta in 0..1 of its range's ends; rounding passes gradients on as they come. Every step moves all by the same
amount, which falls evenly to zero.
Differs: the squared error is that of a layer's outputs, not of a transformer block's, and is computed from the second
moments of its inputs: over all samples at once, so nothing is drawn at random. Rows do not depend on each other, and
each keeps the best step that it has seen; as the first is rounding to nearest, no row ends worse than that. With more
than 4 bits the ends of ranges move slower: a step of 0.5 % is more than a code of 8 bits. In the end, on the grids that
were found, each weight in turn goes to the level that is best for its row as it is by then, however far away; such
coordinate descent is Behdin et al., "QuantEase", arXiv:2309.01885, algorithm 1. It about halves what is left.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import CHUNK, Format, Grid, QuantizedWeight, per_column
from lighten.quantize.formats.integer import IntegerFormat
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import Moments, pieces, times
from lighten.registry import quantizer

LEAST_SHARE = 0.01  # of a range: without any, every weight of the group would be zero


@dataclass(frozen=True, kw_only=True)
class SignRoundConfig(MethodConfig):
    """steps: of descent. learning_rate: how far the first goes; None = 1 / steps, with which an offset just gets to its
    end if all steps go one way. sweeps: passes over the columns in the end, as long as something moves. damping: what a
    weight's distance from its value counts there, as a fraction of the mean input's square: inputs that calibration
    hardly saw would let their weights go anywhere."""

    needs_inputs: ClassVar[bool] = True
    integers_only: ClassVar[bool] = True
    steps: int = 200
    learning_rate: float | None = None
    sweeps: int = 4
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} is below 1. The default is 200.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate} is not above 0. None is 1 / steps.")
        if self.sweeps < 0:
            raise ConfigError(f"sweeps={self.sweeps} is below 0. The default is 4.")
        if not self.damping > 0:
            raise ConfigError(f"damping={self.damping} is not above 0. The default is 0.01.")


@quantizer("signround", SignRoundConfig)
def signround(
    weight: Tensor, form: Format, group_size: int | None, config: SignRoundConfig, moments: Moments
) -> QuantizedWeight:
    """weight [rows, columns], some rows at a time, so that what a step works on stays in the cache."""
    bound = form.bound_to(weight)
    assert isinstance(bound, IntegerFormat)
    columns = weight.shape[1]
    size = columns if group_size is None else min(group_size, columns)
    parts = []
    for some, of_parts in pieces(len(weight), len(moments.hessian), max(1, CHUNK // columns)):
        rows, hessian = weight[some].float(), moments.hessian[of_parts]
        codes, *grid = descend(rows, bound, size, config, hessian)
        wide = Grid(*(per_column(part, size, columns).expand_as(rows) for part in grid))
        parts.append((settle(rows, codes, wide, bound, config, hessian), *grid))
    codes, scale, zero_point = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedWeight(codes, Grid(scale, None if bound.symmetric else zero_point), bound, size)


def descend(
    weight: Tensor, form: IntegerFormat, group_size: int, config: SignRoundConfig, hessian: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of weight [rows, columns] the codes uint8 with the least output error on the way, and their scale and zero_point
    [rows, groups], a symmetric format's written out. hessian: see Moments."""
    low, high = range_of_groups(weight, group_size)
    offset, shares = torch.zeros_like(weight), torch.ones(2, *low.shape)
    unit = _unit(weight)
    free = weight != 0  # zeros stay zeros
    rate = 1 / config.steps if config.learning_rate is None else config.learning_rate
    calm = min(1.0, 15 / form.largest)  # codes that the ends of a range pass at a step: as with 4 bits
    least = torch.full((len(weight),), torch.inf)
    best = (torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(low), torch.empty_like(low))
    for step in range(config.steps + 1):
        with torch.enable_grad():
            offset.requires_grad_()
            shares.requires_grad_()
            restored, *found = round_through(weight, offset * free, low * shares[0], high * shares[1], form, group_size)
            change = (restored.detach() - weight) / unit
            slope = times(change, hessian)
            slopes = torch.autograd.grad(restored, (offset, shares), slope)
        error = (change * slope).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        for kept, part in zip(best, found, strict=True):
            kept[better] = part[better]
        size = rate * (1 - step / config.steps)
        offset = (offset.detach() - size * slopes[0].sign()).clamp_(-0.5, 0.5)
        shares = (shares.detach() - size * calm * slopes[1].sign()).clamp_(LEAST_SHARE, 1)
    return best


def range_of_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of each group of weight [rows, columns], or 0: both [rows, groups]."""
    groups = -(-weight.shape[1] // group_size)
    padded = F.pad(weight, (0, groups * group_size - weight.shape[1])).view(len(weight), groups, group_size)
    return padded.amin(-1).clamp(max=0), padded.amax(-1).clamp(min=0)


def round_through(
    weight: Tensor, offset: Tensor, low: Tensor, high: Tensor, form: IntegerFormat, group_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight + offset steps on the grids of the ranges low..high [rows, groups].

    Returns what the codes stand for, the codes uint8, and the grid's scale and zero_point. Gradients go through
    rounding as if it were not there; an offset of a clipped weight has none.
    """
    hard = form.grid_of_range(low.detach(), high.detach())
    if hard.zero_point is None:
        scale = _as_if(hard.scale, torch.maximum(-low, high) / (form.middle - 1))
        zero = torch.full_like(hard.scale, form.middle)
    else:
        scale = _as_if(hard.scale, high / form.largest - low / form.largest)
        zero = _as_if(hard.zero_point, -low / scale)
    wide_scale, wide_zero = (per_column(part, group_size, weight.shape[1]) for part in (scale, zero))
    level = weight / wide_scale + offset
    codes = (_as_if(level.detach().round(), level) + wide_zero).clamp(int(form.symmetric), form.largest)
    return (codes - wide_zero) * wide_scale, codes.detach().to(torch.uint8), hard.scale, zero.detach()


def _as_if(value: Tensor, smooth: Tensor) -> Tensor:
    """value exactly, with the gradient of smooth."""
    return value + (smooth - smooth.detach())


def settle(
    weight: Tensor, codes: Tensor, grid: Grid, form: IntegerFormat, config: SignRoundConfig, hessian: Tensor
) -> Tensor:
    """codes of weight, all [rows, columns] like the parts of grid, after passes over the columns; no row is worse.

    Columns are rows of memory here, [parts, columns, rows of a part], so that one and all that come after it lie
    together.
    """
    assert grid.zero_point is not None
    unit = _unit(weight)

    ends = (end - grid.zero_point for end in (int(form.symmetric), form.largest))
    scale, exact, levels, lowest, highest = (
        x.unflatten(0, (len(hessian), -1)).mT.contiguous()
        for x in (grid.scale / unit, weight / unit, codes - grid.zero_point, *ends)
    )
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damped = hessian + torch.diag_embed(torch.where(mean > 0, config.damping * mean, 1.0).expand(hessian.shape[:2]))
    before = levels.clone()
    for _ in range(config.sweeps):
        slope = damped @ (levels * scale - exact)
        moved = False
        for i in range(levels.shape[1]):
            best = levels[:, i] - slope[:, i] / (damped[:, i, i, None] * scale[:, i])
            best = best.round_().clamp_(lowest[:, i], highest[:, i]).where(exact[:, i] != 0, levels[:, i])
            step = best - levels[:, i]
            if step.any():
                moved = True
                levels[:, i] = best
                slope[:, i:].addcmul_(damped[:, i, i:, None], (step * scale[:, i])[:, None])
        if not moved:
            break
    errors = [(change * (hessian @ change)).sum(1) for change in (x * scale - exact for x in (levels, before))]
    chosen: Tensor = torch.where((errors[0] < errors[1])[:, None], levels, before).mT.flatten(0, 1)
    return (chosen + grid.zero_point).to(torch.uint8)


def _unit(weight: Tensor) -> Tensor:
    """[rows, 1] the largest of each row, in which errors are measured: squares of float32 weights may overflow."""
    return weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
