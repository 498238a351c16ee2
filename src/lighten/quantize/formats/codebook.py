"""Codebooks of 4 bits: value = table[code] · scale, where the table is not evenly spaced.

Sources: NF4: Dettmers et al., "QLoRA", arXiv:2305.14314, appendix E, whose table this is: quantiles of a normal
distribution, 0 among them. MXFP4: OCP Microscaling Formats v1.0: e2m1 values in blocks of 32, the scale a power of two.
NVFP4: e2m1 values in blocks of 16, the scale an e4m3 float times one float32 for the whole tensor.
Differs: MXFP4's scale is the smallest power of two at which nothing is clipped, where the standard rounds it down.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lighten.quantize.formats.grid import Format, Grid, round_up_to

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E4M3_LEAST = 2.0**-9  # the smallest subnormal
E2M1 = (*_E2M1, *(-x for x in _E2M1))  # by bit pattern: the top bit is the sign, so code 8 is -0


@dataclass(frozen=True, kw_only=True)
class CodebookFormat:
    """table: the 16 values of a code at scale 1. kind: how scales are stored ("float", "e8m0" or "e4m3").

    unit: what scales are multiples of; NVFP4's scale of the whole tensor.
    """

    table: tuple[float, ...]
    kind: str = "float"
    unit: float = 1.0
    scale_dtype: torch.dtype = torch.float32
    bits: int = 4

    def bound_to(self, weight: Tensor) -> Format:
        """Scales get the weight's dtype, or their own; NVFP4's unit makes the largest group's scale 448, e4m3's end."""
        if self.kind == "e8m0":
            return replace(self, scale_dtype=torch.float8_e8m0fnu)
        if self.kind == "e4m3":
            largest = float(weight.abs().amax().float()) / max(self.table)
            unit = largest / torch.finfo(torch.float8_e4m3fn).max
            tiny = torch.finfo(torch.float32).tiny
            return replace(self, scale_dtype=torch.float8_e4m3fn, unit=unit if unit > tiny else 1.0)
        return replace(self, scale_dtype=weight.dtype)

    def values(self) -> Tensor:
        """[16] float32 what a code stands for at scale 1: the table times the unit."""
        return torch.tensor(self.table, dtype=torch.float32) * self.unit

    def fit(self, groups: Tensor) -> Grid:
        """The largest magnitude becomes that of the table."""
        table = self.values()
        least = groups.abs().amax(-1, keepdim=True) / float(table.max())
        if self.kind == "e8m0":
            mantissa, exponent = torch.frexp(least)
            exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-126, 127)
            return Grid(torch.where(least > 0, torch.ldexp(torch.ones_like(least), exponent), 1.0), None)
        if self.kind == "e4m3":  # to nearest, as the standard does: what is largest in a group may be clipped
            scale = least.clamp(E4M3_LEAST, torch.finfo(torch.float8_e4m3fn).max).to(torch.float8_e4m3fn).float()
            return Grid(torch.where(least > 0, scale, 1.0), None)
        return Grid(round_up_to(least, self.scale_dtype), None)

    def encode(self, values: Tensor, grid: Grid) -> Tensor:
        """The nearest value; a tie goes to the smaller one."""
        ordered, codes = self.values().sort(stable=True)
        ordered, codes = ordered[self._distinct(ordered)], codes[self._distinct(ordered)]
        middles = (ordered[1:] + ordered[:-1]) / 2
        return codes.to(torch.uint8)[torch.bucketize((values / grid.scale).contiguous(), middles)]

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """float32, 0.0 where the table says 0."""
        return self.values()[codes.int()] * grid.scale

    @staticmethod
    def _distinct(ordered: Tensor) -> Tensor:
        """[n] bool: False for -0 after 0, which no value is nearer to."""
        return torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])


def nf4() -> CodebookFormat:
    """QLoRA's NormalFloat."""
    return CodebookFormat(table=NF4)


def mxfp4() -> CodebookFormat:
    """OCP's block format; group_size is 32."""
    return CodebookFormat(table=E2M1, kind="e8m0")


def nvfp4() -> CodebookFormat:
    """NVIDIA's block format; group_size is 16."""
    return CodebookFormat(table=E2M1, kind="e4m3")
