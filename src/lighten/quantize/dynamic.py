"""Dynamic quantization: linear layers on integers, their inputs' ranges found at run time, one a token.

    step = max |x| / 127 over the last axis          codes = round(x / step)
    y = (codes · weight codes) · step · weight scale + bias

Source: Yao et al., "ZeroQuant", arXiv:2206.01861, sec. 4.2 (token-wise quantization). No calibration is needed, and a
token with large values costs the others nothing. What is not a linear layer stays float.

Export writes standard ONNX operators around MatMulInteger, which adds up in int32; the module adds up exactly as well.
Codes are bytes of zero point 128, because kernels multiply unsigned by signed ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.fold import fold_batch_norm_
from lighten.plan import LayerPlan
from lighten.quantize.affine import quantize_weight
from lighten.quantize.assignment import Assignment
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.placement import aten, place
from lighten.quantize.progress import OnProgress, silent
from lighten.quantize.static import must_be_numbers, round_layers
from lighten.quantize.store import replace_parameter_
from lighten.quantize.weight_only import entry_of
from lighten.quantize.weights import empty_parameters

_EXACT = 1024  # products of 127 · 127 whose sum a float32 holds exactly: below 2^24 / 127^2 = 1040

_LIBRARY = torch.library.Library("lighten", "FRAGMENT")  # ops.py defines it
_LIBRARY.define("linear_dynamic(Tensor x, Tensor codes, Tensor scale, Tensor? bias) -> Tensor")


def _linear_dynamic(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    step = torch.where(step > torch.finfo(torch.float32).tiny, step, 1.0)
    rounded = (x / step).round().clamp(-127, 127)
    # Sums of int8 products in float32, for its fast kernels, as long as they are exact.
    parts = zip(rounded.split(_EXACT, -1), codes.float().split(_EXACT, -1), strict=True)
    total = sum((a @ w.T).double() for a, w in parts)
    assert isinstance(total, Tensor)
    y = total.float() * step * scale
    return y if bias is None else y + bias


_LIBRARY.impl("linear_dynamic", _linear_dynamic, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_dynamic", lambda x, codes, scale, bias: x.new_empty(*x.shape[:-1], codes.shape[0]), "Meta")
linear_dynamic = torch.ops.lighten.linear_dynamic.default


@dataclass(frozen=True, kw_only=True)
class DynamicRequest:
    """What is asked for. bits: no weight's code is wider; None = as the schemes say. batches: read by a method that
    needs inputs, only. bits_because, on_progress: as of StaticRequest."""

    assignment: Assignment
    bits: int | None
    method: MethodConfig
    batches: Iterable[Any]
    exclude: tuple[str, ...]
    bits_because: str | None = None
    on_progress: OnProgress = silent


def quantize_dynamic(captured: CapturedModule, request: DynamicRequest) -> None:
    """Replace the linear layers of captured by integer ones, in place; its plan says which.

    Raises:
        CaptureError: a weight is NaN or infinite. TaskError: see lighten.quantize.layerwise.
    """
    fold_batch_norm_(captured)
    placement = place(captured.graph, request.exclude, empty_parameters(captured))
    linear = {node: name for node, name in placement.weighted.items() if node.target == aten.linear.default}
    others = {
        name: "not quantized: ranges at run time are for linear layers"
        for node, name in placement.weighted.items()
        if node not in linear
    }
    for node, name in linear.items():
        must_be_numbers(captured, node, name)
    schemes = {node: request.assignment.of(name) for node, name in linear.items()}
    bits = {node: min(scheme.weight_bits, request.bits or 8) for node, scheme in schemes.items()}
    rounded = round_layers(captured, replace(placement, weighted=linear), request, bits)
    for node in linear:
        given = arguments(node)
        weight = get_tensor(captured, str(given["weight"].target)).detach()
        codes, scale = rounded[node] if node in rounded else quantize_weight(weight, bits[node])
        parts = {"codes": codes, "scale": scale}
        # The operator reads codes and scale where the layer read its weight; what stands there is the operator itself.
        made = replace_parameter_(captured, given["weight"], linear_dynamic, parts)
        stored, source = made.args, given["input"]
        with captured.graph.inserting_before(node):
            called = captured.graph.call_function(linear_dynamic, (source, *stored, given["bias"]))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        captured.graph.erase_node(node)
        captured.graph.erase_node(made)
    captured.graph.lint()
    captured.recompile()
    method, assignment = entry_of(request.method).name, request.assignment
    captured.plan = captured.plan.with_layers(
        {name: LayerPlan(scheme=schemes[node].name, method=method) for node, name in linear.items()},
        skipped={**placement.skipped, **others},
        scheme=assignment.name,
        method=method,
        weight_bits=request.bits if assignment.special else min(assignment.default.weight_bits, request.bits or 8),
        weight_bits_because=request.bits_because,
    )


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """In standard operators around MatMulInteger."""
    from onnxscript import FLOAT, INT8, opset20

    op: Any = opset20  # its stubs know fewer types than its operators

    def dynamic_to_onnx(x: FLOAT, codes: INT8, scale: FLOAT, bias: FLOAT | None) -> Any:
        def number(value: float) -> Any:
            return op.Constant(value_float=value)

        step = op.Div(op.ReduceMax(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1), number(127.0))
        step = op.Where(op.Greater(step, number(torch.finfo(torch.float32).tiny)), step, number(1.0))
        rounded = op.Clip(op.Round(op.Div(x, step)), number(-127.0), number(127.0))
        zero = op.Cast(op.Constant(value_int=128), to=2)  # uint8
        taken = op.Cast(op.Add(rounded, number(128.0)), to=2)
        total = op.Cast(op.MatMulInteger(taken, op.Transpose(codes, perm=[1, 0]), zero), to=1)
        y = op.Mul(op.Mul(total, step), scale)
        return y if bias is None else op.Add(y, bias)

    return {linear_dynamic: dynamic_to_onnx}
