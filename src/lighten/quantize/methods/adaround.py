"""AdaRound: learn for each weight whether to round it up or down, for the sake of the layer's output.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568: a rectified
sigmoid h(V) in 0..1 stands for "up", and a term 1 - |2h - 1|^beta, with beta falling, drives it to either end.
Differs: the layer's squared output error is computed from the second moments of its inputs, which is what it sums up to
over all samples, so a step costs one matrix product whatever the calibration data. The error is measured in units of
that of rounding to nearest, so `weight_of_ends` means the same for every layer. In the end, weights are turned one at
a time where that lowers the error, which finds what Adam's many small steps left undecided. A row that comes out worse
than by rounding to nearest is rounded to nearest.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight, per_column
from lighten.quantize.formats.integer import IntegerFormat
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.moments import Moments, better_rows, output_errors, times
from lighten.registry import quantizer

# The sigmoid is stretched to this range and cut to 0..1, so that 0 and 1 are reached: the paper's zeta and gamma.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
_BLOCK = 128  # columns


@dataclass(frozen=True, kw_only=True)
class AdaRoundConfig(MethodConfig):
    """steps: of Adam, at learning_rate. weight_of_ends: of the term that drives h to 0 or 1, a weight's mean; it sets
    in after a fifth of the steps, its exponent falling from first_beta to last_beta. sweeps: passes over the columns in
    the end, as long as something changes."""

    needs_inputs: ClassVar[bool] = True
    integers_only: ClassVar[bool] = True
    steps: int = 500
    learning_rate: float = 0.05
    weight_of_ends: float = 10.0
    first_beta: float = 20.0
    last_beta: float = 2.0
    sweeps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} is below 1. The default is 500.")
        if self.learning_rate <= 0 or self.weight_of_ends <= 0:
            raise ConfigError("learning_rate and weight_of_ends must be above 0. The defaults are 0.05 and 10.")
        if self.sweeps < 0:
            raise ConfigError(f"sweeps={self.sweeps} is below 0. The default is 4.")
        if not self.first_beta >= self.last_beta >= 1:
            raise ConfigError(f"beta falls: {self.first_beta} to {self.last_beta} does not, or goes below 1.")


@quantizer("adaround", AdaRoundConfig)
def adaround(
    weight: Tensor, form: Format, group_size: int | None, config: AdaRoundConfig, moments: Moments
) -> QuantizedWeight:
    """weight [rows, columns], on the grid of rounding to nearest."""
    bound = form.bound_to(weight)
    assert isinstance(bound, IntegerFormat)
    nearest = rtn(weight, bound, group_size, RTNConfig())
    columns = weight.shape[1]
    parts = (None if part is None else per_column(part, nearest.group_size, columns) for part in nearest.grid)
    codes = round_up_or_down(weight.float(), bound, Grid(*parts), config, moments.hessian)  # type: ignore[arg-type]
    learned = QuantizedWeight(codes, nearest.grid, bound, nearest.group_size)
    errors = [output_errors(weight, q, moments.hessian) for q in (learned, nearest)]
    return better_rows(learned, nearest, errors[0] <= errors[1])


def round_up_or_down(
    weight: Tensor, form: IntegerFormat, grid: Grid, config: AdaRoundConfig, hessian: Tensor
) -> Tensor:
    """[rows, columns] uint8 codes on grid, whose parts are [rows, columns] or [rows, 1]. hessian: see Moments."""
    zero = torch.tensor(float(form.middle)) if grid.zero_point is None else grid.zero_point
    lowest = 1 if grid.zero_point is None else 0
    exact = weight / grid.scale + zero
    below = exact.floor()
    share = (exact - below).clamp(0.01, 0.99)
    logits = torch.logit((share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)).requires_grad_()
    nearest = (exact.round().clamp(lowest, form.largest) - exact) * grid.scale
    unit = (times(nearest, hessian) * nearest).sum(1).clamp(min=torch.finfo(torch.float32).tiny)  # [rows]
    optimizer = torch.optim.Adam([logits], lr=config.learning_rate)
    # A weight that is a level of the grid stays there, whatever happens around it: zeros stay zeros.
    free = exact != below
    warm = config.steps // 5
    for step in range(config.steps):
        with torch.enable_grad():
            up = _up(logits)
            change = ((below + up * free).clamp(lowest, form.largest) - exact) * grid.scale
            loss = ((times(change, hessian) * change).sum(1) / unit).mean()
            if step >= warm:
                progress = (step - warm) / max(1, config.steps - warm)
                beta = config.first_beta + (config.last_beta - config.first_beta) * progress
                loss = loss + config.weight_of_ends * (1 - (2 * up - 1).abs() ** beta).mean()
            (logits.grad,) = torch.autograd.grad(loss, logits)
        optimizer.step()
    up = (_up(logits.detach()) >= 0.5) & free
    for _ in range(config.sweeps):
        turned = _turn(up, free, below - exact, grid.scale, lowest - exact, form.largest - exact, hessian)
        if torch.equal(turned, up):
            break
        up = turned
    return (below + up).clamp(lowest, form.largest).to(torch.uint8)


def _turn(
    up: Tensor, free: Tensor, down: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor, hessian: Tensor
) -> Tensor:
    """One pass over the columns, in which a weight goes the other way where that alone lowers its row's error.

    down, lowest, highest: steps from the exact weight to the level below, the first and the last level. Of the slope
    change @ H, the columns of a block are kept up to date, the rest when the block is done.
    """
    steps = [(down + way).clamp(lowest, highest) * scale for way in (0, 1)]  # what each choice changes
    # All [parts, rows of a part, columns] from here.
    up, free, gaps = (x.unflatten(0, (len(hessian), -1)) for x in (up.clone(), free, steps[1] - steps[0]))
    slope = torch.where(up, steps[1].view_as(gaps), steps[0].view_as(gaps)) @ hessian
    for start in range(0, up.shape[2], _BLOCK):
        span, after = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        moved = torch.zeros_like(slope[:, :, span])
        for i in range(start, min(start + _BLOCK, up.shape[2])):
            gap = torch.where(up[:, :, i], -1.0, 1.0) * gaps[:, :, i]
            pays = (2 * gap * slope[:, :, i] + gap * gap * hessian[:, i, i, None] < 0) & free[:, :, i]
            gap = gap * pays
            up[:, :, i] ^= pays
            moved[:, :, i - start] = gap
            slope[:, :, span].addcmul_(gap[:, :, None], hessian[:, i, None, span])
        slope[:, :, after].baddbmm_(moved, hessian[:, span, after])
    return up.flatten(0, 1)


def _up(logits: Tensor) -> Tensor:
    return (logits.sigmoid() * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)
