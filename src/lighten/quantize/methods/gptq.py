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
    return best


def order_of(hessian: Tensor, config: GPTQConfig) -> Tensor:
    """[columns] in which order they are rounded."""
    if config.act_order:
        return hessian.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(hessian))


def compensate(
    weight: Tensor, form: Format, size: int, grid: Grid, config: GPTQConfig, hessian: Tensor, factor: Tensor
) -> QuantizedWeight:
    """Algorithm 1 alone. size: columns a group. grid: used with act_order. factor: see inverse_factor."""
    rows, columns = weight.shape
    order = order_of(hessian, config)
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    grid = Grid(*(None if part is None else part.clone() for part in grid))  # type: ignore[arg-type]
    left = weight.t().index_select(0, order).float()  # [columns, rows]: a column of weight is a row of memory
    block = config.block_size
    if not config.act_order and size < columns:
        block = -(-block // size) * size  # whole groups, so that a group's grid sees all earlier errors
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty(stop - start, rows)
        for i in range(start, stop):
            group = int(order[i]) // size
            if not config.act_order and i % size == 0:
                for part, fresh in zip(grid, form.fit(left[i : i + size].t()), strict=True):
                    if part is not None and fresh is not None:
                        part[:, group] = fresh[:, 0]
            column = Grid(*(None if part is None else part[:, group] for part in grid))  # type: ignore[arg-type]
            pruned = weight[:, int(order[i])] == 0
            rounded = form.encode(left[i].masked_fill(pruned, 0), column)
            codes[int(order[i])] = rounded
            errors[i - start] = (left[i] - form.decode(rounded, column)) / factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    del left  # the codes are about to be there twice
    return QuantizedWeight(codes.t().contiguous(), grid, form, size)


def inverse_factor(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """Upper U with Uᵀ U = (H + damping · mean(diag H) · I)⁻¹, rows and columns in that order; its row i is what an
    error in column i does to the rest.

    More damping is tried, ten times as much, where float32 finds the sum not positive definite. Of the matrices on the
    way two are held at a time.
    """
    mean = hessian.diagonal().mean()
    matrix: Tensor
    for _ in range(8):
        matrix = hessian[order[:, None], order]
        matrix.diagonal().add_(damping * mean if mean > 0 else 1.0)
        matrix, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            torch.cholesky_inverse(matrix, out=matrix)
            matrix, failed = torch.linalg.cholesky_ex(matrix, upper=True)
            if not failed:
                return matrix
        damping *= 10
    raise AssertionError("a positive semidefinite matrix plus 10^5 of its mean diagonal is positive definite")
