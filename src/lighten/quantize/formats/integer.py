"""Affine integers: value = (code - zero_point) · scale, with codes 0..2^bits - 1.

Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, sec. 2.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight, by_groups, round_up_to


@dataclass(frozen=True, kw_only=True)
class IntegerFormat:
    """symmetric: zero_point is 2^(bits-1) throughout, and codes keep as far from it below as above."""

    bits: int
    symmetric: bool
    scale_dtype: torch.dtype = torch.float32

    def bound_to(self, weight: Tensor) -> Format:
        """Scales get the weight's dtype."""
        return replace(self, scale_dtype=weight.dtype)

    def fit(self, groups: Tensor) -> Grid:
        """From the smallest to the largest value, 0 among them; 0.0 is exactly representable."""
        return self.grid_of_range(groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True))

    def grid_of_range(self, low: Tensor, high: Tensor) -> Grid:
        """The grid that spans [low, high], widened to contain 0."""
        if self.symmetric:
            return Grid(round_up_to(torch.maximum(-low, high) / (self.middle - 1), self.scale_dtype), None)
        low, high = low.clamp(max=0), high.clamp(min=0)
        # Divided first: the difference of two large values may be beyond float32.
        scale = round_up_to(high / self.largest - low / self.largest, self.scale_dtype)
        return Grid(scale, (-low / scale).round_().clamp_(0, self.largest))

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """To nearest, ties to even."""
        codes = (values / grid.scale).round_()
        if grid.zero_point is None:
            return codes.clamp_(1 - self.middle, self.middle - 1).add_(self.middle).to(torch.uint8)
        return codes.add_(grid.zero_point).clamp_(0, self.largest).to(torch.uint8)

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """float32, 0.0 for the code zero_point."""
        zero = float(self.middle) if grid.zero_point is None else grid.zero_point
        return (codes.float() - zero).mul_(grid.scale)

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric format."""
        return int(2 ** (self.bits - 1))


def round_on_grids(
    weight: Tensor, form: Format, group_size: int | None, fit: Callable[[Tensor, IntegerFormat], Grid]
) -> QuantizedWeight:
    """weight [rows, columns] to nearest on grids that fit chooses, from groups [n, size] float32 to a grid of [n, 1].

    form must be an IntegerFormat, which the engine has checked.
    """
    bound = form.bound_to(weight)
    assert isinstance(bound, IntegerFormat)
    integer: IntegerFormat = bound

    def work(groups: Tensor) -> tuple[Grid, Tensor]:
        grid = fit(groups, integer)
        return grid, integer.encode(groups, grid)

    return by_groups(weight, integer, group_size, work)
