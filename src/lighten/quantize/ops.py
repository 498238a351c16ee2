"""The operators of a quantized graph, with the meaning of ONNX's QuantizeLinear, DequantizeLinear and Clip.

    codes = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        qmin, qmax: of zero_point's dtype
    x_hat = (codes - zero_point) * scale
    limited = min(codes, most)                                                for codes of fewer bits than their dtype

scale and zero_point are scalars (one for the tensor) or vectors along `axis`. Each maps one to one onto its ONNX
operator (`onnx_translations`), so what the module computes is what the runtime is told to compute.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("lighten", "DEF")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int axis=0) -> Tensor")
_LIBRARY.define("dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis=0) -> Tensor")
_LIBRARY.define("limit(Tensor codes, int most) -> Tensor")


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    limits = torch.iinfo(zero_point.dtype)
    codes = torch.round(x / along(scale, x, axis)) + along(zero_point, x, axis)
    return codes.clamp(limits.min, limits.max).to(zero_point.dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    # int32 codes of a bias exceed float32's 24 bits only where the step is far below what a float32 sum resolves.
    return (codes.to(scale.dtype) - along(zero_point, codes, axis).to(scale.dtype)) * along(scale, codes, axis)


def along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """vector as it broadcasts against x along axis; a scalar stays one."""
    if vector.ndim == 0:
        return vector
    return vector.view([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


_LIBRARY.impl("limit", lambda codes, most: codes.clamp(max=most), "CompositeExplicitAutograd")
_LIBRARY.impl("quantize", _quantize, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
_LIBRARY.impl("quantize", lambda x, scale, zero_point, axis=0: torch.empty_like(x, dtype=zero_point.dtype), "Meta")
_LIBRARY.impl("dequantize", lambda codes, scale, zero_point, axis=0: torch.empty_like(codes, dtype=scale.dtype), "Meta")
_LIBRARY.impl("limit", lambda codes, most: torch.empty_like(codes), "Meta")

quantize = torch.ops.lighten.quantize.default
dequantize = torch.ops.lighten.dequantize.default
limit = torch.ops.lighten.limit.default


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=…)`."""
    from onnxscript import FLOAT, INT8, opset20

    op: Any = opset20  # its stubs know fewer types than its operators

    # The exporter reads these signatures only to tell tensors from attributes; integer types of any width may come.
    def quantize_linear(x: FLOAT, scale: FLOAT, zero_point: INT8, axis: int = 0) -> Any:
        return op.QuantizeLinear(x, scale, zero_point, axis=axis)

    def dequantize_linear(codes: INT8, scale: FLOAT, zero_point: INT8, axis: int = 0) -> Any:
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    def clip(codes: INT8, most: int) -> Any:
        # A number that Clip takes in the codes' own type.
        return op.Clip(codes, None, op.CastLike(op.Constant(value_int=most), codes))

    return {quantize: quantize_linear, dequantize: dequantize_linear, limit: clip}
