"""Grid: the values that the codes of a group stand for; and a weight that was put on one.

A weight is seen as [rows, columns]: a linear layer's [out, in], a convolution's [out, in · kernel]. Every `group_size`
columns of a row share a scale, the last group of a row may be short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK = 2**18  # elements worked on at once: a few arrays of this size stay in a core's cache


class Grid(NamedTuple):
    """scale: > 0, in weight units per code. zero_point: the code of 0.0 as float32, None = built into the format."""

    scale: Tensor
    zero_point: Tensor | None


class Format(Protocol):
    """What codes mean. All tensors but the codes (uint8) are float32; a grid's end in an axis of one a group."""

    @property
    def bits(self) -> int:
        """Width of a code."""

    @property
    def scale_dtype(self) -> torch.dtype:
        """What a scale is stored as; the scales of a grid are representable in it."""

    def bound_to(self, weight: Tensor) -> "Format":
        """The format for this weight: its dtype, and what has to be known of the whole tensor."""

    def fit(self, groups: Tensor) -> Grid:
        """The grid of each group of [..., group_size], as wide as what is in it. Zeros get a scale of 1."""

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """The codes of the nearest values of the grid."""

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """The values that codes stand for."""


@dataclass(frozen=True)
class QuantizedWeight:
    """codes [rows, columns] uint8. grid: scale and zero_point [rows, groups]. group_size: columns a group.

    input_scale [columns]: what the codes stand for is weight · input_scale, so inputs are divided by it; None = 1.
    """

    codes: Tensor
    grid: Grid
    format: Format
    group_size: int
    input_scale: Tensor | None = None

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        """[rows, columns] float32, input_scale still in it."""
        columns = self.codes.shape[1]
        spread = (None if part is None else per_column(part[rows], self.group_size, columns) for part in self.grid)
        return self.format.decode(self.codes[rows], Grid(*spread))  # type: ignore[arg-type]

    def effective(self, rows: slice = slice(None)) -> Tensor:
        """[rows, columns] float32: the weight that inputs meet, input_scale taken out again."""
        restored = self.dequantize(rows)
        return restored if self.input_scale is None else restored / self.input_scale


def per_column(per_group: Tensor, group_size: int, columns: int) -> Tensor:
    """[rows, columns], or [rows, 1] where a row is one group, from [rows, groups]."""
    if per_group.shape[1] == 1:
        return per_group
    return per_group.repeat_interleave(group_size, 1)[:, :columns]


def round_up_to(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale > 0 as the next value above that dtype has, so that what fitted still fits; 1 where it is next to 0."""
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    if dtype in (torch.float32, torch.float64):
        return scale
    rounded = scale.to(dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.float() < scale, above, rounded).float()


def by_groups(
    weight: Tensor, form: Format, group_size: int | None, work: Callable[[Tensor], tuple[Grid, Tensor]]
) -> QuantizedWeight:
    """Apply work, from groups [n, size] float32 to (grid [n, 1], codes [n, size]), to every group of weight.

    Some rows at a time, so that memory stays near that of the codes. A group size above the row is the whole row.
    """
    rows, columns = weight.shape
    size = columns if group_size is None else min(group_size, columns)
    whole, n_groups = columns // size, -(-columns // size)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scale, zero_point = torch.empty(rows, n_groups), torch.empty(rows, n_groups)
    has_zero_point = False
    for start in range(0, rows, max(1, CHUNK // columns)):
        stop = min(rows, start + max(1, CHUNK // columns))
        chunk = weight[start:stop].float()
        for first, count, width in ((0, whole, size), (whole, n_groups - whole, columns - whole * size)):
            if not count:
                continue
            span = slice(first * size, first * size + count * width)
            grid, part = work(chunk[:, span].reshape(-1, width))
            codes[start:stop, span] = part.view(stop - start, -1)
            scale[start:stop, first : first + count] = grid.scale.view(stop - start, -1)
            if grid.zero_point is not None:
                has_zero_point = True
                zero_point[start:stop, first : first + count] = grid.zero_point.view(stop - start, -1)
    return QuantizedWeight(codes, Grid(scale, zero_point if has_zero_point else None), form, size)
