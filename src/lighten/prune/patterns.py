"""Patterns: which weights of a matrix go together, and the exact choice of those that stay.

A weight is seen as a matrix [out, in · kernel]. A *unit* is what is kept or pruned as one: a single weight, or a block
of R outputs × C inputs. Under n:m every run of m inputs keeps n. For a convolution such a run lies along the input
channels at one place of the kernel, as sparse tensor cores read it, so its matrix has the channels last.

Sources: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, for 2:4; Elsen et al., "Fast
Sparse ConvNets", arXiv:1911.09723, for blocks of 4×1 (four outputs that read the same input).
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError

KNOWN = "element, n:m (2:4, 4:8, 1:4, …) and block:RxC (block:4x1, …)"


@dataclass(frozen=True)
class Pattern:
    """rows × columns: the size of a unit. keep, of: n and m of n:m; of = 0 where any unit may go."""

    name: str
    rows: int = 1
    columns: int = 1
    keep: int = 0
    of: int = 0

    @property
    def is_n_of_m(self) -> bool:
        """Whether the pattern fixes the sparsity of every run by itself."""
        return self.of > 0

    @property
    def ratio(self) -> float:
        """Of n:m: the share of weights that it prunes."""
        return 1 - self.keep / self.of

    def misfit(self, shape: torch.Size) -> str | None:
        """Why a weight [out, in, *kernel] cannot be cut into units, with what would fit; None if it can."""
        n_out, n_in = shape[0], shape[1] if self.is_n_of_m else shape[1:].numel()
        axes = [("outputs", n_out, self.rows), ("inputs", n_in, self.of if self.is_n_of_m else self.columns)]
        for what, size, part in axes:
            if size % part:
                fits = max(d for d in range(1, part) if size % d == 0)
                return f"{self.name} needs a multiple of {part} {what}, and it has {size}; {fits} would fit"
        return None

    def matrix(self, weight: Tensor) -> Tensor:
        """[out, in · kernel] of weight [out, in, *kernel]; for n:m with the channels last."""
        return weight.flatten(1)[:, self.column_order(weight.shape)]

    def restore(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of matrix()."""
        flat = torch.empty_like(matrix)
        flat[:, self.column_order(shape)] = matrix
        return flat.view(shape)

    def column_order(self, shape: torch.Size) -> Tensor:
        """[in · kernel] which column of weight.flatten(1) stands where in the matrix."""
        columns = torch.arange(shape[1:].numel())
        return columns.view(shape[1], -1).T.reshape(-1) if self.is_n_of_m else columns

    def units(self, scores: Tensor) -> Tensor:
        """[out / rows, columns / columns]: the sum of scores [out, columns] over each unit."""
        blocks = scores.reshape(scores.shape[0] // self.rows, self.rows, -1, self.columns)
        return blocks.sum((1, 3))

    def spread(self, units: Tensor) -> Tensor:
        """The inverse of units() for masks: every weight gets what its unit has."""
        return units.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)


def parse_pattern(granularity: str) -> Pattern:
    """The pattern of that name.

    Raises:
        ConfigError: unknown, or n:m and R×C without sense.
    """
    if granularity == "element":
        return Pattern(granularity)
    if found := re.fullmatch(r"(\d+):(\d+)", granularity):
        keep, of = map(int, found.groups())
        if not 0 < keep < of:
            raise ConfigError(
                f"granularity='{granularity}' keeps {keep} of every {of}. Use n:m with 0 < n < m, as 2:4."
            )
        return Pattern(granularity, keep=keep, of=of)
    if found := re.fullmatch(r"block:(\d+)x(\d+)", granularity):
        rows, columns = map(int, found.groups())
        if rows < 1 or columns < 1:
            raise ConfigError(f"granularity='{granularity}' has an empty block. Use 1 or more, as block:4x1.")
        return Pattern(granularity, rows=rows, columns=columns)
    raise ConfigError(f"granularity='{granularity}' is not available for single weights. Available: {KNOWN}.")


def keep_mask(unit_scores: Tensor, n_gone: int) -> Tensor:
    """bool of unit_scores' shape, False at exactly the n_gone lowest; of equal ones the first go."""
    mask = torch.ones(unit_scores.numel(), dtype=torch.bool)
    mask[unit_scores.flatten().argsort(stable=True)[:n_gone]] = False
    return mask.view(unit_scores.shape)


def n_of_m_mask(scores: Tensor, keep: int, of: int) -> Tensor:
    """bool of scores [out, columns], True at the `keep` highest of every `of` along the columns."""
    runs = scores.unflatten(1, (-1, of))
    gone = runs.argsort(dim=-1, stable=True)[..., : of - keep]
    return torch.ones_like(runs, dtype=torch.bool).scatter(-1, gone, False).flatten(1)
