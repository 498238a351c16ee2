"""GPTQ: round column by column, and let the columns still to come make up for each error.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323, algorithm 1; the update is that of optimal brain surgery (Hassibi & Stork 1993), its inverse Hessians
read from one Cholesky factor.
Differs: inputs that were always zero are rounded to nearest instead of being set to zero. With act_order the grids of
groups come from the weights as given, so that groups stay where they are in memory; without it, from the weights as
they are when a group is due. With act_order, integers are tried twice: on the grids that span the groups and on those
with the least squared error of the weights, and each row is taken from the better. A row that comes out worse than by
rounding to nearest is rounded to nearest. What is zero was pruned and stays zero; what it would have become is an error
that the other columns make up for.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight
from lighten.quantize.formats.integer import IntegerFormat
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.mse import MSEConfig, mse
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.moments import Moments, better_rows, output_errors
from lighten.registry import quantizer


@dataclass(frozen=True, kw_only=True)
class GPTQConfig(MethodConfig):
    """damping: added to the Hessian's diagonal, as a fraction of its mean. act_order: columns with the largest inputs
    first. block_size: columns that are finished before the rest of the matrix is brought up to date. narrow: whether
    integers in act_order are tried on grids of least squared error, too, which takes twice the time."""

    needs_inputs: ClassVar[bool] = True
    damping: float = 0.01
    act_order: bool = True
    block_size: int = 128
    narrow: bool = True

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ConfigError(f"damping={self.damping} is not above 0. The default is 0.01; more is more like rtn.")
        if self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size} is below 1. The default is 128.")


@quantizer("gptq", GPTQConfig)
def gptq(weight: Tensor, form: Format, group_size: int | None, config: GPTQConfig, moments: Moments) -> QuantizedWeight:
    """weight [rows, columns], to a small change of its outputs on the inputs that moments were taken from."""
    form = form.bound_to(weight)
    factor = inverse_factor(moments.hessian, order_of(moments.hessian, config), config.damping)
    best: QuantizedWeight = rtn(weight, form, group_size, RTNConfig())
    least = output_errors(weight, best, moments.hessian)
    for narrow in (False, True):
        if narrow and not (config.act_order and config.narrow and isinstance(form, IntegerFormat)):
            continue
        grid = (mse(weight, form, group_size, MSEConfig()) if narrow else best).grid
        compensated = compensate(weight, form, best.group_size, grid, config, moments.hessian, factor)
        errors = output_errors(weight, compensated, moments.hessian)
        best, least = better_rows(compensated, best, errors < least), errors.minimum(least)
        del compensated  # else it would stay while the next is made
    return best


def order_of(hessian: Tensor, config: GPTQConfig) -> Tensor:
    """[parts, columns]: in which order columns are rounded."""
    diagonals = hessian.diagonal(dim1=1, dim2=2)
    if config.act_order:
        return diagonals.argsort(descending=True, stable=True)
    return torch.arange(hessian.shape[1]).expand_as(diagonals)


def compensate(
    weight: Tensor, form: Format, size: int, grid: Grid, config: GPTQConfig, hessian: Tensor, factor: Tensor
) -> QuantizedWeight:
    """Algorithm 1 alone. size: columns a group. grid: used with act_order. factor: see inverse_factor."""
    (n_parts, columns), each = hessian.shape[:2], len(weight) // len(hessian)
    order = order_of(hessian, config)
    by_column = weight.unflatten(0, (n_parts, each)).mT
    codes = torch.empty(n_parts, each, columns, dtype=torch.uint8)
    grid = Grid(*(None if part is None else part.clone() for part in grid))  # type: ignore[arg-type]
    # [parts, columns, rows of a part], in that order of columns: a column of weight is a row of memory.
    every = torch.arange(n_parts)
    left = by_column[every[:, None], order].float()
    block = config.block_size
    if not config.act_order and size < columns:
        block = -(-block // size) * size  # whole groups, so that a group's grid sees all earlier errors
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty(n_parts, stop - start, each)
        for i in range(start, stop):
            if not config.act_order and i % size == 0:
                for part, fresh in zip(grid, form.fit(left[:, i : i + size].mT.flatten(0, 1)), strict=True):
                    if part is not None and fresh is not None:
                        part[:, i // size] = fresh[:, 0]
            at = order[:, i]
            column = _of_groups(grid, at // size, each)
            values, pruned = left[:, i].flatten(), by_column[every, at].flatten() == 0
            rounded = form.encode(values.masked_fill(pruned, 0), column)
            codes[every, :, at] = rounded.view(n_parts, each)
            error = (values - form.decode(rounded, column)).view(n_parts, each) / factor[:, i, i, None]
            errors[:, i - start] = error
            left[:, i + 1 : stop].addcmul_(factor[:, i, i + 1 : stop, None], error[:, None], value=-1)
        left[:, stop:].baddbmm_(factor[:, start:stop, stop:].mT, errors, alpha=-1)
    return QuantizedWeight(codes.flatten(0, 1), grid, form, size)


def _of_groups(grid: Grid, groups: Tensor, each: int) -> Grid:
    """The grid [rows] of the groups of columns that rows have it from: groups [parts], of `each` rows."""
    index = groups.repeat_interleave(each)[:, None]
    return Grid(*(None if part is None else part.gather(1, index)[:, 0] for part in grid))  # type: ignore[arg-type]


def inverse_factor(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """Upper U with Uᵀ U = (H + damping · mean(diag H) · I)⁻¹, rows and columns in that order; its row i is what an
    error in column i does to the rest. All [parts, columns, columns].

    More damping is tried, ten times as much, in parts where float32 finds the sum not positive definite. Of the
    matrices on the way two are held at a time.
    """
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    added = torch.where(mean > 0, damping * mean, 1.0)
    every = torch.arange(len(hessian))[:, None, None]
    matrix: Tensor
    for _ in range(8):
        matrix = hessian[every, order[:, :, None], order[:, None]]
        matrix.diagonal(dim1=1, dim2=2).add_(added)
        matrix, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any():
            torch.cholesky_inverse(matrix, out=matrix)
            matrix, failed = torch.linalg.cholesky_ex(matrix, upper=True)
            if not failed.any():
                return matrix
        added = torch.where(failed[:, None] > 0, 10 * added, added)
    raise AssertionError("a positive semidefinite matrix plus 10^5 of its mean diagonal is positive definite")
