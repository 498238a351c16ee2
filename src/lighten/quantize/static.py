"""Static quantization: weights and activations as integers, activation ranges from calibration.

Source: Jacob et al., arXiv:1712.05877, for the arithmetic; Nagel et al., arXiv:2106.08295, sec. 3, for the recipe.
The result holds integer codes, and computes in float what integer kernels compute: codes of a tensor times its scale,
a bias in int32 steps of input scale · weight scale, one rounding where a kernel ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass
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
from lighten.quantize.formats import IntegerFormat, QuantizedWeight
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig
from lighten.quantize.moments import Moments
from lighten.quantize.placement import Placement, place, pool_after_clipping_
from lighten.quantize.ranges import Ranges, observe_ranges
from lighten.quantize.scheme import Scheme
from lighten.quantize.steps.bias_correction import give_bias_, mean_inputs, mean_shift
from lighten.quantize.steps.equalization import EqualizationConfig, equalize_
from lighten.quantize.steps.smoothquant import SmoothQuantConfig, smooth_
from lighten.quantize.store import register, replace_parameter_
from lighten.quantize.weight_only import entry_of, round_weight
from lighten.quantize.weights import StoredWeight


def quantize_static(
    captured: CapturedModule,
    scheme: Scheme,
    bits: int,
    batches: Iterable[Any],
    observer: str,
    exclude: Iterable[str],
    method: MethodConfig,
    steps: tuple[str, ...] = (),
) -> None:
    """Make captured an integer network, in place; its plan says what was done.

    bits: of a weight's code. Weights of fewer than 8 bits are held in int8, because kernels read bytes. steps: see
    lighten.quantize.steps. batches are read once where nothing but ranges is to be found; otherwise all are kept.
    """
    if method.needs_inputs or set(steps) - {"equalization"}:
        batches = list(batches)
    fold_batch_norm_(captured)
    if "equalization" in steps:
        equalize_(captured, EqualizationConfig())
    if "smoothquant" in steps:
        smooth_(captured, batches, SmoothQuantConfig())
    pool_after_clipping_(captured.graph)
    placement = place(captured.graph, exclude)
    for node, name in placement.weighted.items():
        _must_be_numbers(captured, node, name)
    if "bias-correction" in steps:
        for node in placement.weighted:
            give_bias_(captured, node)
    ranges = observe_ranges(captured, placement.points, batches, observer)
    rounded = _rounded(captured, placement, batches, method, bits)
    means = mean_inputs(captured, placement.weighted, batches) if "bias-correction" in steps else {}
    _insert(captured, placement, ranges, _Weights(scheme.per_tensor, bits, rounded, means))
    captured.plan = captured.plan.with_layers(
        {name: LayerPlan(scheme=scheme.name, method=entry_of(method).name) for name in placement.weighted.values()},
        skipped=placement.skipped,
        scheme=scheme.name,
        method=entry_of(method).name,
        steps=list(steps),
        observer=observer,
        weight_bits=bits,
    )


@dataclass(frozen=True)
class _Weights:
    """How weights become codes. rounded: those that a method other than rtn has rounded. means: of layers' inputs, to
    correct biases with."""

    per_tensor: bool
    bits: int
    rounded: dict[fx.Node, QuantizedWeight]
    means: dict[fx.Node, Tensor]


def _rounded(
    captured: CapturedModule, placement: Placement, batches: Iterable[Any], method: MethodConfig, bits: int
) -> dict[fx.Node, QuantizedWeight]:
    """Codes for each layer's weight: symmetric, one scale a channel, as kernels take them; rtn's are made later."""
    found: dict[fx.Node, QuantizedWeight] = {}
    if isinstance(method, RTNConfig):
        return found
    form = IntegerFormat(bits=bits, symmetric=True)
    weights = [StoredWeight(arguments(n)["weight"], name, n, False) for n, name in placement.weighted.items()]

    def work(weight: StoredWeight, moments: list[Moments] | None) -> Tensor:
        assert weight.reader is not None
        value = get_tensor(captured, str(weight.parameter.target)).detach()
        quantized = round_weight(value, form, None, method, moments)
        found[weight.reader] = quantized
        return quantized.dequantize().view(value.shape)

    if method.needs_inputs:
        run_layer_by_layer(captured, weights, batches, work)
    else:
        for weight in weights:
            work(weight, None)
    return found


def _must_be_numbers(captured: CapturedModule, node: fx.Node, layer: str) -> None:
    given = arguments(node)
    for what in ("weight", "bias"):
        if given[what] is not None and not get_tensor(captured, str(given[what].target)).isfinite().all():
            raise CaptureError(f"The {what} of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")


def _insert(captured: CapturedModule, placement: Placement, ranges: Ranges, weights: _Weights) -> None:
    """Write the quantize and dequantize nodes, and replace weights by their codes, in place."""
    qparams = {point: qparams_of_range(*limits) for point, limits in ranges.items()}
    for node, name in placement.weighted.items():
        read = arguments(node)["input"]
        input_scale, _ = qparams[placement.followers.get(read, read)]
        _quantize_parameters(captured, node, name, input_scale, weights)
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
    captured: CapturedModule, node: fx.Node, layer: str, input_scale: Tensor, weights: _Weights
) -> None:
    given = arguments(node)
    weight = get_tensor(captured, str(given["weight"].target)).detach()
    bias = None if given["bias"] is None else get_tensor(captured, str(given["bias"].target)).detach()
    least = None if bias is None else least_weight_scale(bias, input_scale)
    codes, scale = quantize_weight(weight, weights.bits, least, per_tensor=weights.per_tensor)
    if node in weights.rounded:
        codes, scale = _with_method(weights.rounded[node], codes, scale, least)
    if node in weights.means:
        assert bias is not None
        restored = codes.float() * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = (bias.double() - mean_shift(restored - weight, weights.means[node])).float()
    bias_scale = scale * input_scale
    if not bias_scale.isfinite().all():
        raise CaptureError(
            f"Layer '{layer}' cannot be quantized: no float32 scale spans its input, in steps of "
            f"{float(input_scale):.3g}, and its weight or bias. Exclude it, or bring its input nearer to 1."
        )
    _store(captured, given["weight"], codes, scale)
    if bias is not None:
        _store(captured, given["bias"], quantize_bias(bias, bias_scale), bias_scale)


def _with_method(rounded: QuantizedWeight, codes: Tensor, scale: Tensor, least: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a method has rounded, but for channels whose scale has to be larger than it chose: those stay as given."""
    chosen = rounded.grid.scale[:, 0]
    fits = torch.ones_like(chosen, dtype=torch.bool) if least is None else chosen >= least
    assert isinstance(rounded.format, IntegerFormat)
    signed = (rounded.codes.to(torch.int16) - rounded.format.middle).to(torch.int8).view(codes.shape)
    return torch.where(fits.view(-1, *[1] * (codes.ndim - 1)), signed, codes), torch.where(fits, chosen, scale)


def _store(captured: CapturedModule, parameter: fx.Node, codes: Tensor, scale: Tensor) -> None:
    parts = {"codes": codes, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=codes.dtype)}
    replace_parameter_(captured, parameter, ops.dequantize, parts)
