"""Moments: what calibration says about the inputs of one layer, in memory that does not grow with the data.

Rounding a weight W to Ŵ changes the layer's output by (W - Ŵ) x. Summed over the data, its square is
tr((W - Ŵ) H (W - Ŵ)ᵀ) / 2 with `hessian` H = 2 X Xᵀ / n_samples, so H is all that data-driven rounding has to know.
The rows of a grouped convolution's weight fall into `parts` of as many rows each, with inputs and an H of their own;
other layers have one part. All parts are worked on at once: a depthwise layer has a thousand, of one row each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.quantize.formats.grid import CHUNK, QuantizedWeight
from lighten.quantize.placement import CONVOLUTIONS

# Of the mean input's square. Calibration data says little of directions that inputs hardly take; of 0.1, 0.3 and 1 the
# largest was best on a sentence encoder at 3 bits (benchmarks/weight_only.py).
AIM_DAMPING = 1.0
_UNFOLDED = 2**24  # most elements that patches of a convolution's input may take at once


@dataclass(frozen=True)
class Moments:
    """hessian [parts, columns, columns] float32. mean_abs [parts, columns]: the mean magnitude of each input.

    drift [parts, columns, columns]: 2 (X̄ - X) Xᵀ / n_samples, where X̄ are the inputs in the network as given, and X
    those that rounded layers before make; None = they are the same.
    """

    hessian: Tensor
    mean_abs: Tensor
    drift: Tensor | None = None


class MomentAccumulator:
    """Sums over batches."""

    def __init__(self) -> None:
        self.n_samples = 0
        self.squares: Tensor | None = None
        self.magnitudes: Tensor | None = None
        self.drifts: Tensor | None = None

    def add(self, rows: Tensor, given: Tensor | None = None) -> None:
        """rows [parts, samples, columns]: what each part of the layer multiplies with its weights. given: the same in
        the network as given."""
        rows = rows.detach().float()
        if given is not None:
            change = (given.detach().float() - rows).mT @ rows
            self.drifts = change if self.drifts is None else self.drifts.add_(change)
        if self.squares is None or self.magnitudes is None:
            parts, _, columns = rows.shape
            self.squares = torch.zeros(parts, columns, columns)
            self.magnitudes = torch.zeros(parts, columns)
        self.squares.baddbmm_(rows.mT, rows)
        self.magnitudes += rows.abs().sum(1)
        self.n_samples += rows.shape[1]

    def moments(self) -> Moments:
        """To be asked for once, when all has been added."""
        assert self.squares is not None
        assert self.magnitudes is not None
        n = max(1, self.n_samples)
        # Not summed on after this, so the sums themselves become the means: a copy would be another [columns, columns].
        drift = None if self.drifts is None else self.drifts.mul_(2 / n)
        return Moments(self.squares.mul_(2 / n), self.magnitudes.div_(n), drift)


def times(rows: Tensor, hessian: Tensor) -> Tensor:
    """Each of rows [rows, columns] times the matrix of its part."""
    product: Tensor = rows.unflatten(0, (len(hessian), -1)) @ hessian
    return product.flatten(0, 1)


def pieces(n_rows: int, n_parts: int, most: int) -> Iterator[tuple[slice, slice]]:
    """All rows in turn, about `most` at a time, with their parts: several whole parts, or some rows of one."""
    each = n_rows // n_parts
    if each > most:
        for start in range(0, n_rows, each):
            for row in range(start, start + each, most):
                yield slice(row, min(row + most, start + each)), slice(start // each, start // each + 1)
        return
    step = most // each
    for part in range(0, n_parts, step):
        stop = min(part + step, n_parts)
        yield slice(part * each, stop * each), slice(part, stop)


def aim(weight: Tensor, moments: Moments) -> Tensor:
    """What weight [rows, columns] float has to be on the inputs at hand to make what it makes on those it was given.

    The weights W' with the least squares |W X̄ - W' X|² + damping |W' - W|². What is zero was pruned and stays zero.
    Source: Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", arXiv:2504.02692, for
    the aim; Differs: it is reached before rounding, by one ridge regression, so that any method can round to it.
    """
    if moments.drift is None:
        return weight
    damped = moments.hessian.clone()
    mean = damped.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    seen = mean > 0  # where no input ever was, nothing moves
    damped.diagonal(dim1=1, dim2=2).add_(torch.where(seen, AIM_DAMPING * mean, 1.0))
    toward = moments.drift.mT @ weight.float().unflatten(0, (len(damped), -1)).mT
    moved = torch.cholesky_solve(toward, torch.linalg.cholesky(damped)).mT.where(seen[:, None], 0)
    return torch.where(weight == 0, 0.0, weight + moved.flatten(0, 1).to(weight))


def output_errors(weight: Tensor, quantized: QuantizedWeight, hessian: Tensor) -> Tensor:
    """[rows] float64: the mean squared change of each output when quantized takes the place of weight [rows, columns].

    Some rows at a time. Large weights are scaled down before they are squared: float32 ends at 10^38.
    """
    errors = []
    for rows, parts in pieces(len(weight), len(hessian), max(1, 2 * CHUNK // weight.shape[1])):
        change = weight[rows].float() - quantized.effective(rows)
        unit = change.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        change /= unit
        errors.append((times(change, hessian[parts]) * change).sum(1).double() * unit.double() ** 2 / 2)
    return torch.cat(errors)


def better_rows(first: QuantizedWeight, second: QuantizedWeight, prefer_first: Tensor) -> QuantizedWeight:
    """Each row from the one that prefer_first [rows] says; both are of one format and group size."""
    chosen = prefer_first[:, None]
    grid = [
        None if a is None or b is None else torch.where(chosen, a, b)
        for a, b in zip(first.grid, second.grid, strict=True)
    ]
    codes = torch.where(chosen, first.codes, second.codes)
    return QuantizedWeight(codes, type(first.grid)(*grid), first.format, first.group_size)  # type: ignore[arg-type]


def rows_of_input(reader: fx.Node, x: Tensor, weight_shape: torch.Size) -> Iterator[Tensor]:
    """What reader, a linear layer or a convolution, multiplies with its weight's rows.

    x: its input. Yields [parts, samples, columns], a few samples at a time.
    """
    if reader.target not in CONVOLUTIONS:
        yield x.reshape(1, -1, x.shape[-1])
        return
    given = arguments(reader)
    kernel = list(weight_shape[2:])
    stride, dilation = (_per_axis(given[key], kernel) for key in ("stride", "dilation"))
    x = F.pad(x, _padding(given["padding"], kernel, dilation))
    if len(kernel) == 1:  # as a picture of one line
        x, kernel, stride, dilation = x.unsqueeze(2), [1, *kernel], [1, *stride], [1, *dilation]
    size = x[0].numel() * math.prod(kernel)
    for part in x.split(max(1, _UNFOLDED // max(1, size))):
        patches = _patches(part, kernel, stride, dilation)
        grouped = patches.unflatten(1, (given["groups"], -1))
        yield grouped.permute(1, 0, 3, 2).flatten(1, 2)


def _patches(x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """[n, channels · kernel, places] of padded x [n, channels, …] with 2 or 3 further axes."""
    if len(kernel) == 2:
        return F.unfold(x, tuple(kernel), tuple(dilation), 0, tuple(stride))
    # F.unfold knows pictures only, so that a volume becomes one for every slice of the kernel and every depth.
    depths = (x.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    slices = []
    for i in range(kernel[0]):
        start = i * dilation[0]
        pictures = x[:, :, start : start + stride[0] * (depths - 1) + 1 : stride[0]].transpose(1, 2).flatten(0, 1)
        slices.append(F.unfold(pictures, tuple(kernel[1:]), tuple(dilation[1:]), 0, tuple(stride[1:])))
    stacked = torch.stack([part.unflatten(1, (x.shape[1], -1)) for part in slices], 2)  # [n · depths, channels, …]
    return stacked.flatten(1, 3)


def _per_axis(value: Any, kernel: list[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * len(kernel) if len(values) == 1 else values


def _padding(given: Any, kernel: list[int], dilation: list[int]) -> list[int]:
    """As F.pad takes it, last axis first."""
    if isinstance(given, str):
        totals = [d * (k - 1) if given == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in _per_axis(given, kernel)]
    return [p for pair in reversed(pairs) for p in pair]
