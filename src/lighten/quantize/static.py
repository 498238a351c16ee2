"""Static quantization: weights and activations as integers, activation ranges from calibration.

Source: Jacob et al., arXiv:1712.05877, for the arithmetic; Nagel et al., arXiv:2106.08295, sec. 3, for the recipe.
The result holds integer codes, and computes in float what integer kernels compute: codes of a tensor times its scale,
a bias in int32 steps of input scale · weight scale, one rounding where a kernel ends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of
from lighten.graph.fold import fold_batch_norm_
from lighten.plan import LayerPlan
from lighten.quantize import ops
from lighten.quantize.affine import least_weight_scale, qparams_of_range, quantize_bias, quantize_weight
from lighten.quantize.placement import Placement, place, pool_after_clipping_
from lighten.quantize.ranges import Ranges, observe_ranges
from lighten.quantize.scheme import Scheme
from lighten.quantize.store import register, replace_parameter_


def quantize_static(
    captured: CapturedModule, scheme: Scheme, bits: int, batches: Iterable[Any], observer: str, exclude: Iterable[str]
) -> None:
    """Make captured an integer network, in place; its plan says what was done.

    bits: of a weight's code. Weights of fewer than 8 bits are held in int8, because kernels read bytes.
    """
    fold_batch_norm_(captured)
    pool_after_clipping_(captured.graph)
    placement = place(captured.graph, exclude)
    ranges = observe_ranges(captured, placement.points, batches, observer)
    _insert(captured, placement, ranges, scheme, bits)
    captured.plan = captured.plan.with_layers(
        {name: LayerPlan(scheme=scheme.name, method="rtn") for name in placement.weighted.values()},
        skipped=placement.skipped,
        scheme=scheme.name,
        method="rtn",
        observer=observer,
        weight_bits=bits,
    )


def _insert(captured: CapturedModule, placement: Placement, ranges: Ranges, scheme: Scheme, bits: int) -> None:
    """Write the quantize and dequantize nodes, and replace weights by their codes, in place."""
    qparams = {point: qparams_of_range(*limits) for point, limits in ranges.items()}
    for node, name in placement.weighted.items():
        read = arguments(node)["input"]
        input_scale, _ = qparams[placement.followers.get(read, read)]
        _quantize_parameters(captured, node, name, input_scale, scheme, bits)
    for point, (scale, zero_point) in qparams.items():
        names = [
            register(captured, f"{point.name}_{part}", value)
            for part, value in (("scale", scale), ("zero_point", zero_point))
        ]
        for node in (point, *(f for f, root in placement.followers.items() if root is point)):
            _round_trip(captured.graph, node, *names)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.graph.lint()
    captured.recompile()


def _round_trip(graph: fx.Graph, node: fx.Node, scale_name: str, zero_point_name: str) -> None:
    """Everyone who reads node reads dequantize(quantize(node)) instead."""
    with graph.inserting_after(node):
        dequantized = graph.call_function(ops.dequantize, ())
    with graph.inserting_before(dequantized):
        scale = graph.get_attr(scale_name)
        zero_point = graph.get_attr(zero_point_name)
        codes = graph.call_function(ops.quantize, (node, scale, zero_point))
    node.replace_all_uses_with(dequantized, lambda user: user is not codes)
    dequantized.args = (codes, scale, zero_point)
    for made in (codes, dequantized, scale, zero_point):
        made.meta = {"layer": layer_of(node)}


def _quantize_parameters(
    captured: CapturedModule, node: fx.Node, layer: str, input_scale: Tensor, scheme: Scheme, bits: int
) -> None:
    given = arguments(node)
    weight = get_tensor(captured, str(given["weight"].target))
    bias = None if given["bias"] is None else get_tensor(captured, str(given["bias"].target))
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and not value.isfinite().all():
            raise CaptureError(f"The {what} of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")
    least = None if bias is None else least_weight_scale(bias, input_scale)
    codes, scale = quantize_weight(weight, bits, least, per_tensor=scheme.per_tensor)
    bias_scale = scale * input_scale
    if not bias_scale.isfinite().all():
        raise CaptureError(
            f"Layer '{layer}' cannot be quantized: no float32 scale spans its input, in steps of "
            f"{float(input_scale):.3g}, and its weight or bias. Exclude it, or bring its input nearer to 1."
        )
    _store(captured, given["weight"], codes, scale)
    if bias is not None:
        _store(captured, given["bias"], quantize_bias(bias, bias_scale), bias_scale)


def _store(captured: CapturedModule, parameter: fx.Node, codes: Tensor, scale: Tensor) -> None:
    parts = {"codes": codes, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=codes.dtype)}
    replace_parameter_(captured, parameter, ops.dequantize, parts)
