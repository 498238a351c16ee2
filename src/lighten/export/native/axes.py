"""Operators that are a matrix along one axis at a time: resizing, averages over unlike windows, running sums.

The operator itself, run on unit vectors, makes the matrix, which is mostly zeros: a sparse product like any other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lighten.export.native.ids import Ids, batch_of, by_rows, in_rows, one_sample
from lighten.export.native.operators import made, pooled
from lighten.export.native.products import best_block
from lighten.export.native.reader import Handler, Reader, must
from lighten.export.native.reductions import reduced
from lighten.runtime.native.packed import FLOAT_BITS, pack
from lighten.runtime.native.program import Conv

aten = torch.ops.aten


def along(reader: Reader, value: Ids, axis: int, operator: Callable[[Tensor], Tensor]) -> Ids:
    """What a linear operator, [n, size] to [n, new size], makes of every line along the axis."""
    batch = batch_of(value)
    must(batch.axis != axis, "it mixes the samples of a batch")
    sample = one_sample(value, batch)
    unit = torch.eye(sample.shape[axis], dtype=torch.float64)
    matrix = operator(unit).T.float().contiguous().numpy()  # [new size, size]
    if matrix.shape[0] == matrix.shape[1] and bool((matrix == unit.numpy()).all()):
        return value
    x = reader.build.lay(by_rows(sample, [axis]))
    is_vector = reader.build.sizes[x].height * reader.build.sizes[x].width == 1
    block = best_block(matrix, 1, FLOAT_BITS, is_vector)
    weight = reader.build.keep(pack(matrix, None, block), FLOAT_BITS)
    shape = [len(matrix) if i == axis else size for i, size in enumerate(sample.shape)]
    op = Conv(inputs=(x,), weight=weight, rows=len(matrix), block=block)
    return made(reader, op, in_rows(shape, [axis]), batch)


def _resized(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    target: Any = node.target
    value: Ids = given["input"]
    n_axes = value.at.ndim - 2
    for i in range(n_axes):
        size, scale = (
            None if each is None else [each[i]] + [one] * (n_axes - 1)
            for each, one in ((given["output_size"], 1), (given["scale_factors"], 1.0))
        )
        value = along(reader, value, 2 + i, partial(_lines_resized, target, size, scale, given["align_corners"]))
    return value


def _lines_resized(target: Any, size: Any, scale: Any, align_corners: bool, lines: Tensor) -> Tensor:
    """The operator's other axes, of which there are as many as its sizes, have one place."""
    planes = lines.reshape(len(lines), 1, -1, *[1] * (len(size or scale) - 1))
    resized: Tensor = target(planes, size, align_corners, scale)
    return resized.flatten(1)


def _average(n_axes: int) -> Handler:
    """Windows that all count alike are a pool; where some are cut at the edge, each axis is a matrix."""

    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        value: Ids = given["self"]
        sizes, padding = given["kernel_size"], given["padding"]
        must(given.get("divisor_override") is None, "it divides by another number than that of a window's places")
        is_even = not given["ceil_mode"] and (given["count_include_pad"] or not any(padding))
        if is_even and n_axes < 3 and value.at.ndim == n_axes + 2:
            return pooled(reader, node, value, given, "mean")
        windows = [_each(window, n_axes) for window in (sizes, given["stride"] or sizes, padding)]
        for axis, window in zip(range(-n_axes, 0), zip(*windows, strict=True), strict=True):
            value = along(reader, value, axis % value.at.ndim, partial(_averages, given, window))
        return value

    return handler


def _averages(given: dict[str, Any], window: tuple[int, int, int], lines: Tensor) -> Tensor:
    return F.avg_pool1d(lines[:, None], *window, given["ceil_mode"], given["count_include_pad"])[:, 0]


def _each(sizes: Sequence[int], n_axes: int) -> list[int]:
    return list(sizes) * (n_axes // len(sizes))


def _adaptive_average(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    value: Ids = given["self"]
    sizes = given["output_size"]
    axes = [value.at.ndim - len(sizes) + i for i in range(len(sizes))]
    if all(size == 1 for size in sizes):
        return reduced(reader, "mean", value, axes, True)
    for axis, size in zip(axes, sizes, strict=True):
        value = along(reader, value, axis, partial(F.adaptive_avg_pool1d, output_size=size))
    return value


def _running_sum(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return along(reader, given["self"], given["dim"] % given["self"].at.ndim, lambda lines: lines.cumsum(-1))


HANDLERS: dict[Any, Handler] = {
    aten.upsample_linear1d.vec: _resized,
    aten.upsample_bilinear2d.vec: _resized,
    aten.upsample_bicubic2d.vec: _resized,
    aten.avg_pool1d.default: _average(1),
    aten.avg_pool2d.default: _average(2),
    aten.avg_pool3d.default: _average(3),
    aten.adaptive_avg_pool1d.default: _adaptive_average,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.adaptive_avg_pool3d.default: _adaptive_average,
    aten.cumsum.default: _running_sum,
}
