"""Floats of 8 bits: value = float8 · scale, by torch's own types.

Source: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433. e4m3 ends at 448, e5m2 at 57344.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lighten.quantize.formats.grid import Format, Grid, round_up_to

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True, kw_only=True)
class Float8Format:
    """kind: "e4m3" or "e5m2"."""

    kind: str
    scale_dtype: torch.dtype = torch.float32
    bits: int = 8

    @property
    def dtype(self) -> torch.dtype:
        """torch's type of a code."""
        return DTYPES[self.kind]

    def bound_to(self, weight: Tensor) -> Format:
        """Scales get the weight's dtype."""
        return replace(self, scale_dtype=weight.dtype)

    def fit(self, groups: Tensor) -> Grid:
        """The largest magnitude becomes the largest float8."""
        largest = groups.abs().amax(-1, keepdim=True)
        return Grid(round_up_to(largest / torch.finfo(self.dtype).max, self.scale_dtype), None)

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """To nearest, ties to even, as bit patterns; beyond the end is the end, where torch would make NaN."""
        limit = torch.finfo(self.dtype).max
        return (values / grid.scale).clamp_(-limit, limit).to(self.dtype).view(torch.uint8)

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """float32."""
        return codes.view(self.dtype).float() * grid.scale
