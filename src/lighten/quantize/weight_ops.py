"""The operators that give back a weight from its packed codes. What they compute is what a Format decodes.

    dequantize_packed     (code - zero_point) · scale      zero_point None: 2^(bits-1)
    dequantize_codebook   table[code] · scale
    dequantize_float8     float8 · scale

The weight of that shape is seen as [shape[0], columns]; packed [rows, bytes] uint8 holds its codes, zero_point
[rows, bytes] uint8 its zero points packed likewise, scale [rows, groups] a factor for every group_size columns.
Computed in float32, then rounded to the weight's dtype: that of scale, or the argument.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lighten.graph.capture import CapturedModule, get_tensor, set_tensor_
from lighten.quantize import ops
from lighten.quantize.formats.grid import per_column
from lighten.quantize.packing import period, unpack

_LIBRARY = torch.library.Library("lighten", "FRAGMENT")  # ops.py defines it
_LIBRARY.define(
    "dequantize_packed(Tensor packed, Tensor scale, Tensor? zero_point, int bits, int[] shape, int group_size) "
    "-> Tensor"
)
_LIBRARY.define(
    "dequantize_codebook(Tensor packed, Tensor scale, Tensor table, int[] shape, int group_size, ScalarType dtype) "
    "-> Tensor"
)
_LIBRARY.define("dequantize_float8(Tensor codes, Tensor scale, int group_size) -> Tensor")


def columns_of(shape: Sequence[int]) -> int:
    """Columns of a weight of that shape, seen as a matrix."""
    return math.prod(shape[1:])


def _dequantize_packed(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, shape: list[int], group_size: int
) -> Tensor:
    columns = columns_of(shape)
    codes = unpack(packed, bits, columns).float()
    if zero_point is None:
        codes -= 2 ** (bits - 1)
    else:
        codes -= per_column(unpack(zero_point, bits, scale.shape[1]), group_size, columns)
    codes *= per_column(scale.float(), group_size, columns)
    return codes.to(scale.dtype).view(shape)


def _dequantize_codebook(
    packed: Tensor, scale: Tensor, table: Tensor, shape: list[int], group_size: int, dtype: torch.dtype
) -> Tensor:
    columns = columns_of(shape)
    values = table[unpack(packed, _bits_of(table), columns).int()]
    values *= per_column(scale.float(), group_size, columns)
    return values.to(dtype).view(shape)


def _dequantize_float8(codes: Tensor, scale: Tensor, group_size: int) -> Tensor:
    values = codes.float().flatten(1)
    values *= per_column(scale.float(), group_size, values.shape[1])
    return values.to(scale.dtype).view(codes.shape)


def _bits_of(table: Tensor) -> int:
    return int(table.shape[0]).bit_length() - 1


for _name, _function, _meta in (
    ("dequantize_packed", _dequantize_packed, lambda p, s, z, bits, shape, g: s.new_empty(shape)),
    ("dequantize_codebook", _dequantize_codebook, lambda p, s, t, shape, g, dtype: t.new_empty(shape, dtype=dtype)),
    ("dequantize_float8", _dequantize_float8, lambda c, s, g: s.new_empty(c.shape)),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _meta, "Meta")

dequantize_packed = torch.ops.lighten.dequantize_packed.default
dequantize_codebook = torch.ops.lighten.dequantize_codebook.default
dequantize_float8 = torch.ops.lighten.dequantize_float8.default
OPERATORS = {dequantize_packed, dequantize_codebook, dequantize_float8}


def stored_names(captured: CapturedModule) -> set[str]:
    """The buffers that these operators read."""
    return {
        str(part.target)
        for node in captured.graph.nodes
        if isinstance(node.target, OpOverload) and node.target.namespace == "lighten"
        for part in node.all_input_nodes
        if part.op == "get_attr" and node.target not in (ops.quantize, ops.dequantize)
    }


def widen_scales_(captured: CapturedModule) -> None:
    """Make float32 of scales that are powers of two (e8m0), a type that ONNX has only from opset 24 on; in place."""
    for node in captured.graph.nodes:
        if node.target == dequantize_codebook:
            name = str(node.args[1].target)
            scale = get_tensor(captured, name)
            if scale.dtype == torch.float8_e8m0fnu:
                set_tensor_(captured, name, scale.float())


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """In standard operators on constants, so that a runtime computes the weight once, when it loads the file."""
    from onnxscript import FLOAT, INT8, UINT8, opset20

    op: Any = opset20  # its stubs know fewer types than its operators

    # The exporter reads these signatures only to tell tensors from attributes; dtypes of any width may come.
    def packed_to_onnx(
        packed: UINT8, scale: FLOAT, zero_point: UINT8 | None, bits: int, shape: Sequence[int], group_size: int
    ) -> Any:
        columns, groups = columns_of(shape), -(-columns_of(shape) // group_size)
        codes = op.CastLike(unpack_onnx(packed, bits, columns), scale)
        if zero_point is None:
            zero = op.CastLike(op.Constant(value_float=float(2 ** (bits - 1))), scale)
        else:
            zero = spread(op.CastLike(unpack_onnx(zero_point, bits, groups), scale), group_size, columns)
        return reshaped(op.Mul(op.Sub(codes, zero), spread(scale, group_size, columns)), shape)

    def codebook_to_onnx(
        packed: UINT8, scale: FLOAT, table: FLOAT, shape: Sequence[int], group_size: int, dtype: int
    ) -> Any:
        columns = columns_of(shape)
        codes = op.Cast(unpack_onnx(packed, 4, columns), to=6)  # int32
        values = op.Mul(op.Gather(table, codes), spread(op.CastLike(scale, table), group_size, columns))
        return reshaped(op.Cast(values, to=int(dtype)), shape)

    def float8_to_onnx(codes: INT8, scale: FLOAT, group_size: int) -> Any:
        known: Any = codes.shape
        shape = [int(n) for n in known]
        values = reshaped(op.CastLike(codes, scale), [shape[0], columns_of(shape)])
        return reshaped(op.Mul(values, spread(scale, group_size, columns_of(shape))), shape)

    def unpack_onnx(packed: Any, bits: int, n: int) -> Any:
        """[rows, n] uint32: each code lies in a byte, or in one and the next, of its period."""
        per, width = period(bits)
        periods = -(-n // per)
        short = periods * width - -(-n * bits // 8)
        words = op.Pad(packed, ints([0, 0, 0, short])) if short else packed
        words = op.Cast(op.Reshape(words, ints([0, periods, width])), to=12)
        starts = [divmod(bits * i, 8) for i in range(per)]
        low = op.Gather(words, ints([byte for byte, _ in starts]), axis=2)
        high = op.Gather(words, ints([min(byte + 1, width - 1) for byte, _ in starts]), axis=2)
        both = op.BitwiseOr(low, op.BitShift(high, uint32([8]), direction="LEFT"))
        codes = op.BitShift(both, uint32([shift for _, shift in starts]), direction="RIGHT")
        codes = op.Reshape(op.BitwiseAnd(codes, uint32([2**bits - 1])), ints([0, periods * per]))
        return op.Slice(codes, ints([0]), ints([n]), ints([1])) if periods * per > n else codes

    def spread(per_group: Any, group_size: int, columns: int) -> Any:
        """per_column, in ONNX."""
        groups = -(-columns // group_size)
        if groups == 1:
            return per_group
        wide = op.Expand(op.Unsqueeze(per_group, ints([2])), ints([1, 1, group_size]))
        wide = op.Reshape(wide, ints([0, groups * group_size]))
        return op.Slice(wide, ints([0]), ints([columns]), ints([1])) if groups * group_size > columns else wide

    def reshaped(matrix: Any, shape: Sequence[int]) -> Any:
        return op.Reshape(matrix, ints(list(shape)))

    def ints(values: list[int]) -> Any:
        return op.Constant(value_ints=values)

    def uint32(values: list[int]) -> Any:
        return op.Cast(op.Constant(value_ints=values), to=12)

    return {
        dequantize_packed: packed_to_onnx,
        dequantize_codebook: codebook_to_onnx,
        dequantize_float8: float8_to_onnx,
    }
