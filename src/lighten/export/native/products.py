"""Products with weights: convolutions and linear layers, with the addition and the activation that alone read them."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from lighten.export.native.attention import multiplied
from lighten.export.native.ids import FIRST, Batch, Ids, batch_of, by_rows, in_rows, one_sample
from lighten.export.native.operators import act_of, image, made, pair
from lighten.export.native.reader import Handler, Reader, must
from lighten.graph.arguments import arguments
from lighten.quantize.weight_ops import dequantize_packed
from lighten.runtime.native.packed import BFLOAT_BITS, Array, pack
from lighten.runtime.native.program import Conv, infer

aten = torch.ops.aten
# Time of a product with R outputs to a block, for each stored block and vector of places, in multiplications. Measured
# on a Zen 4 with AVX-512: R of them from R = 2 on, and at R = 1 the loads, which mostly cross cache lines. R = 16 is no
# faster than 8, and does not fit 16 registers.
PRODUCT_COST = {1: 1.7, 2: 2.0, 4: 4.0, 8: 8.0}
# The same where there is one place, by the bytes of a value: ns, 4096 x 4096 with 50 and 90 % zeros, on the same CPU.
VECTOR_COST = {
    4: {1: 0.45, 2: 0.67, 4: 1.0, 8: 1.4, 16: 2.35},
    2: {1: 0.37, 2: 0.45, 4: 0.58, 8: 0.9, 16: 1.25},
    1: {1: 0.45, 2: 0.48, 4: 0.41, 8: 0.5, 16: 0.67},
}
SAME = 1.05  # times within this factor of each other count as the same
INDEX_BYTES = 2


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: integers of that many bits, symmetric, times scale [rows]."""

    bits: int
    scale: Array


def best_block(weight: Array, groups: int, bits: int, is_vector: bool) -> int:
    """The R at which this weight is fastest, and of those that are the same the smallest: its zeros decide.

    bits: of a value. is_vector: whether there is one place.
    """
    if weight.shape[0] // groups == 1 and groups > 1:
        return 1
    size = -(-bits // 8)
    costs = VECTOR_COST[size] if is_vector else PRODUCT_COST
    blocks = {r: n_blocks(weight, r, groups) for r in costs}
    fastest = min(costs[r] * blocks[r] for r in costs)
    near = [r for r in costs if costs[r] * blocks[r] <= SAME * fastest]
    return min(near, key=lambda r: blocks[r] * (r * size + INDEX_BYTES))


def n_blocks(weight: Array, block: int, groups: int) -> int:
    """How many blocks pack() stores of a weight."""
    n_out = len(weight)
    starts = sorted({*range(0, n_out, block), *range(0, n_out, n_out // groups)})  # groups have columns of their own
    return int(np.logical_or.reduceat(weight.reshape(n_out, -1) != 0, starts).sum())


def _convolution(reader: Reader, node: fx.Node, given: dict[str, Any]) -> None:
    """conv1d is conv2d on one line."""
    x, sample = image(reader, given["input"])
    weight, grid = weight_of(reader, arguments(node)["weight"])
    shape = (1, *node.meta["val"].shape[1:])
    window: dict[str, Any] = {
        "kernel": pair(weight.shape[2:], sample.ndim),
        "stride": pair(given["stride"], sample.ndim),
        "padding": pair(given["padding"], sample.ndim, 0),
        "dilation": pair(given["dilation"], sample.ndim),
    }
    op = Conv(inputs=(x,), weight="", rows=len(weight), block=1, **window)
    product(reader, node, op, weight, grid, given["bias"], in_rows(shape, [1]), FIRST, groups=given["groups"])


def _transposed(reader: Reader, node: fx.Node, given: dict[str, Any]) -> None:
    """Outputs that are a stride apart are a convolution, so all are one convolution of stride² as many channels."""
    x, sample = image(reader, given["input"])
    groups, sizes = given["groups"], reader.build.sizes[x]
    weight = torch.from_numpy(weight_of(reader, arguments(node)["weight"])[0])
    weight = weight if weight.ndim == 4 else weight[:, :, None]
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [out, in / groups, height, width]
    out, n_out = node.meta["val"].shape[2:], len(weight)
    out_sizes = (out[0], out[-1]) if len(out) == 2 else (1, out[0])
    windows = [
        stride_apart(*each)
        for each in zip(
            (sizes.height, sizes.width),
            out_sizes,
            weight.shape[2:],
            pair(given["stride"], sample.ndim),
            pair(given["padding"], sample.ndim, 0),
            pair(given["dilation"], sample.ndim),
            strict=True,
        )
    ]
    (y_taps, sy, ky, py), (x_taps, sx, kx, px) = windows
    parts = torch.zeros(n_out, sy, sx, weight.shape[1], ky, kx)
    for (a, i, at_y), (b, j, at_x) in itertools.product(y_taps, x_taps):
        parts[:, a, b, :, at_y, at_x] = weight[:, :, i, j]
    packed = parts.flatten(0, 2).numpy()
    op = Conv(inputs=(x,), weight="", rows=len(packed), block=1, kernel=(ky, kx), padding=(py, px))
    made_of = infer(op, [sizes])
    order = torch.arange(len(packed) * made_of.height * made_of.width)
    order = order.reshape(n_out, sy, sx, made_of.height, made_of.width).permute(0, 3, 1, 4, 2)
    order = order.flatten(1, 2).flatten(2, 3)[:, : out_sizes[0], : out_sizes[1]].reshape(1, n_out, *out)
    bias = None if given["bias"] is None else given["bias"].repeat_interleave(sy * sx)
    product(reader, node, op, packed, None, bias, order, FIRST, groups=groups)


def stride_apart(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[list[tuple[int, int, int]], int, int, int]:
    """A transposed convolution's line as convolutions: taps, how many of them, their kernel and their padding.

    A tap (a, k, at): outputs a, a + stride, … read weight k of the transposed one as weight `at` of their own.
    """
    reach = [
        (a, k, (a + padding - k * dilation) // stride)
        for a, k in itertools.product(range(stride), range(kernel))
        if (a + padding - k * dilation) % stride == 0
    ]
    last = max(0, *(distance for *_, distance in reach))
    before = max(-(-out // stride) + last - size, *(-distance for *_, distance in reach), 0)
    return [(a, k, distance + before) for a, k, distance in reach], stride, before + last + 1, before


def _linear(reader: Reader, node: fx.Node, given: dict[str, Any]) -> None:
    weight, grid = weight_of(reader, arguments(node)["weight"])
    over_features(reader, node, given["input"], weight, grid, given["bias"])


def _matmul(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids | None:
    a, b = (_as_matrix(each) for each in (given.get("self"), given.get("other", given.get("mat2"))))
    if isinstance(b, Tensor) and b.ndim == 2:
        over_features(reader, node, a, b.T.contiguous().numpy(), None, None)
        return None
    if isinstance(a, Tensor) and a.ndim == 2:
        over_features(reader, node, b, a.contiguous().numpy(), None, None, axis=-2)
        return None
    return multiplied(reader, a, b)


def _as_matrix(value: Any) -> Any:
    """A constant without leading axes of 1, or any other value as it is."""
    is_one = isinstance(value, Tensor) and value.ndim > 2 and math.prod(value.shape[:-2]) == 1
    return value.flatten(0, -3)[0] if is_one else value


def _addmm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> None:
    bias, x, weight = given["self"], given["mat1"], given["mat2"]
    is_linear = isinstance(bias, Tensor) and bias.ndim == 1 and isinstance(weight, Tensor)
    must(is_linear and given["beta"] == given["alpha"] == 1, "it is no linear layer")
    over_features(reader, node, x, weight.T.contiguous().numpy(), None, bias)


def over_features(
    reader: Reader, node: fx.Node, x: Any, weight: Array, grid: Grid | None, bias: Tensor | None, axis: int = -1
) -> None:
    """A linear layer over an axis: a convolution of 1 x 1, all other axes being places."""
    must(isinstance(x, Ids) and x.at.ndim > 1, "it is no linear layer of an activation")
    batch = batch_of(x)
    sample = one_sample(x, batch)
    axis %= sample.ndim
    must(batch.axis != axis, "it mixes the samples of a batch")
    op = Conv(inputs=(reader.build.lay(by_rows(sample, [axis])),), weight="", rows=len(weight), block=1)
    shape = [len(weight) if i == axis else size for i, size in enumerate(sample.shape)]
    product(reader, node, op, weight, grid, bias, in_rows(shape, [axis]), batch)


def product(
    reader: Reader,
    node: fx.Node,
    op: Conv,
    weight: Array,
    grid: Grid | None,
    bias: Tensor | None,
    order: Tensor,
    batch: Batch,
    groups: int = 1,
) -> None:
    """Add op with its weight, and set the value of the last node that becomes part of it.

    order: where each number of a sample's result stands.
    """
    build = reader.build
    bits = build.bits if grid is None else grid.bits
    if bits == BFLOAT_BITS:
        weight = torch.from_numpy(weight).bfloat16().float().numpy()
    out = infer(op, [build.sizes[at] for at in op.inputs])
    is_vector = all(sizes.height * sizes.width == 1 for sizes in (build.sizes[op.inputs[0]], out))
    block = best_block(weight, groups, bits, is_vector)
    packed = pack(weight, None if bias is None else bias.numpy(), block, groups)
    if grid is not None:
        packed = packed.on_grid(grid.scale)
    elif bits == BFLOAT_BITS:
        packed = packed.in_bfloat16()
    op = replace(op, weight=build.keep(packed, bits), block=block, bits=bits, layer=_layer(reader, node))
    last, user = node, only_user(node)
    if user is not None and user.target is aten.add.Tensor and arguments(user)["alpha"] == 1:
        other = added(reader, last, user, order, batch)
        if other is not None:
            reader.fused.add(last)
            last, op = user, replace(op, inputs=(*op.inputs, build.lay(other.reshape(out.rows, -1), out)))
    user = only_user(last)
    if user is not None and (act := act_of(user)) != "none":
        reader.fused.add(last)
        last, op = user, replace(op, act=act)
    reader.values[last] = made(reader, op, order, batch)


def _layer(reader: Reader, node: fx.Node) -> str:
    """The name of the module that node's constants are parameters of; "" where it has none."""
    constant = next((read for read in node.all_input_nodes if isinstance(reader.value(read), Tensor)), None)
    while constant is not None and constant.op != "get_attr":
        constant = next(iter(constant.all_input_nodes), None)
    name = "" if constant is None else str(constant.target)
    return name.rpartition(".")[0] or name


def added(reader: Reader, node: fx.Node, user: fx.Node, order: Tensor, batch: Batch) -> Tensor | None:
    """What user adds to node, in the order of node's numbers; None if it is not known yet, or makes the sum larger."""
    term: Any = user.args[1] if user.args[0] is node else user.args[0]
    value = reader.values.get(term) if isinstance(term, fx.Node) else term
    shape = [*order.shape]
    shape[batch.axis] *= 2
    is_whole = torch.equal(order.flatten().sort().values, torch.arange(order.numel()))
    if term is node or value is None or not is_whole or [*user.meta["val"].shape[1:]] != [*node.meta["val"].shape[1:]]:
        return None
    ids = reader.ids(value)
    sample = one_sample(Ids(ids.at.expand(shape)), batch)
    return sample.flatten()[order.flatten().argsort()]


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads node."""
    (user, *others) = node.users
    return None if others or user.op != "call_function" else user


def weight_of(reader: Reader, node: Any) -> tuple[Array, Grid | None]:
    """A weight in float32 and, where it is stored as integers with a scale for each output, their grid."""
    value = reader.value(node)
    must(isinstance(value, Tensor) and value.dtype == torch.float32, "its weight is no float32 constant")
    return value.numpy(), _grid_of(reader, node) if node.target is dequantize_packed else None


def _grid_of(reader: Reader, node: fx.Node) -> Grid | None:
    given = arguments(node)
    scale = reader.constant(given["scale"])
    is_grid = given["zero_point"] is None and scale.shape[1] == 1
    return Grid(given["bits"], scale[:, 0].numpy()) if is_grid else None


HANDLERS: dict[Any, Handler] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
}
