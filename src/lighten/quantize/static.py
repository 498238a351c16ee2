"""Static quantization: weights and activations as integers, activation ranges from calibration.

Source: Jacob et al., arXiv:1712.05877, for the arithmetic; Nagel et al., arXiv:2106.08295, sec. 3, for the recipe.
The result holds integer codes, and computes in float what integer kernels compute: codes of a tensor times its scale,
a bias in int32 steps of input scale · weight scale, one rounding where a kernel ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of
from lighten.graph.fold import fold_batch_norm_
from lighten.plan import LayerPlan
from lighten.quantize import ops
from lighten.quantize.affine import (
    least_weight_scale,
    qparams_of_range,
    quantize_bias,
    quantize_weight,
    symmetric_qparams,
)
from lighten.quantize.assignment import Assignment
from lighten.quantize.attention import write_out_attention_
from lighten.quantize.formats import IntegerFormat
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig
from lighten.quantize.moments import Moments
from lighten.quantize.placement import Placement, aten, cut_of, place, pool_after_clipping_
from lighten.quantize.progress import OnProgress, announced, silent
from lighten.quantize.ranges import Ranges, observe_ranges
from lighten.quantize.scheme import Scheme
from lighten.quantize.steps.bias_correction import correct_biases_, exact_twins, give_bias_
from lighten.quantize.steps.equalization import EqualizationConfig, equalize_
from lighten.quantize.steps.smoothquant import SmoothQuantConfig, smooth_
from lighten.quantize.store import register, replace_parameter_
from lighten.quantize.weight_only import entry_of, round_weight
from lighten.quantize.weights import StoredWeight, empty_parameters


@dataclass(frozen=True, kw_only=True)
class StaticRequest:
    """What is asked for. bits: no weight's code is wider; None = as the schemes say. steps: see lighten.quantize.steps.

    Weights of fewer than 8 bits are held in int8, because kernels read bytes. batches are read once where nothing but
    ranges is to be found; otherwise all are kept. example_inputs: of the network. bits_because: why bits are fewer than
    the schemes', where this machine's CPU is the reason. on_progress: told what is done next.
    """

    assignment: Assignment
    bits: int | None
    batches: Iterable[Any]
    example_inputs: tuple[Any, ...]
    observer: str
    exclude: Iterable[str]
    method: MethodConfig
    steps: tuple[str, ...] = ()
    bits_because: str | None = None
    on_progress: OnProgress = silent


class Rounding(Protocol):
    """What round_layers reads of a request."""

    @property
    def batches(self) -> Iterable[Any]:
        """Of calibration."""

    @property
    def method(self) -> MethodConfig:
        """How weights are rounded."""

    @property
    def on_progress(self) -> OnProgress:
        """Told what is done next."""


@dataclass(frozen=True)
class QParams:
    """How one activation is quantized: scale [] float32, zero_point [] of the codes' type, bits of its codes."""

    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest value, in steps."""
        lowest = torch.iinfo(self.zero_point.dtype).min - int(self.zero_point)
        return lowest, lowest + 2**self.bits - 1


@dataclass(frozen=True)
class Weights:
    """How one layer's weight becomes codes. rounded: as a method has, where it was not rtn: codes int8 of the weight's
    shape, and scale [out]."""

    scheme: Scheme
    bits: int
    rounded: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Calibrated:
    """All that turns a float graph into an integer one."""

    placement: Placement
    points: dict[fx.Node, QParams]
    weights: dict[fx.Node, Weights]


def quantize_static(captured: CapturedModule, request: StaticRequest) -> None:
    """Make captured an integer network, in place; its plan says what was done."""
    if "bias-correction" in request.steps:
        request = replace(request, batches=list(request.batches))
    found = calibrate_(captured, request)
    exact = exact_twins(captured, found.placement.weighted) if "bias-correction" in request.steps else None
    insert_(captured, found)
    if exact is not None:
        correct_biases_(captured, *exact, request.batches)
    record_(captured, request, found, entry_of(request.method).name)


def calibrate_(captured: CapturedModule, request: StaticRequest) -> Calibrated:
    """Find every range and every code; captured stays float, but for what the steps and folding change in place."""
    batches = request.batches
    if request.method.needs_inputs or set(request.steps) - {"equalization"}:  # which looks at weights alone
        batches = list(batches)
    fold_batch_norm_(captured)
    if "equalization" in request.steps:
        equalize_(captured, EqualizationConfig())
    if "smoothquant" in request.steps:
        smooth_(captured, batches, SmoothQuantConfig())
    pool_after_clipping_(captured.graph)
    write_out_attention_(captured, request.example_inputs)
    placement = place(captured.graph, request.exclude, empty_parameters(captured))
    for node, name in placement.weighted.items():
        must_be_numbers(captured, node, name)
    if "bias-correction" in request.steps:
        for node in placement.weighted:
            give_bias_(captured, node)
    schemes = {node: request.assignment.of(name, layer_of(node)) for node, name in placement.weighted.items()}
    bits = {node: min(scheme.weight_bits, request.bits or 8) for node, scheme in schemes.items()}
    widths = _activation_bits(placement, schemes, request.assignment.default)
    watched = announced(batches, "ranges of activations", request.on_progress)
    seen = observe_ranges(captured, {cut_of(n): bits for n, bits in widths.items()}, watched, request.observer)
    ranges = {node: seen[cut_of(node)] for node in widths if cut_of(node) in seen}
    points = {point: QParams(*qparams_of_range(*ranges[point], widths[point]), widths[point]) for point in ranges}
    points |= _signed_factors(placement, ranges)
    rounded = round_layers(captured, placement, replace(request, batches=batches), bits)
    weights = {n: Weights(schemes[n], bits[n], rounded.get(n)) for n in placement.weighted}
    return Calibrated(placement, points, weights)


def record_(captured: CapturedModule, request: StaticRequest, found: Calibrated, method: str) -> None:
    """Write into the plan what was done; method: what has rounded the weights."""
    name, bits = request.assignment.name, request.bits
    if not request.assignment.special:
        bits = min(request.assignment.default.weight_bits, bits or 8)
    captured.plan = captured.plan.with_layers(
        {
            layer: LayerPlan(scheme=found.weights[node].scheme.name, method=method)
            for node, layer in found.placement.weighted.items()
        },
        skipped=found.placement.skipped,
        scheme=name,
        method=method,
        steps=list(request.steps),
        observer=request.observer,
        weight_bits=bits,
        weight_bits_because=request.bits_because,
    )


def _signed_factors(placement: Placement, ranges: Ranges) -> dict[fx.Node, QParams]:
    """How the factors of products are quantized, but for first ones that are never below 0: in signed codes around 0.

    OpenVINO has no integer kernel for factors with a zero point. ONNX Runtime takes signed codes for bytes around 128.
    """
    found = {}
    for product in placement.products:
        factors = product.all_input_nodes
        first, second = (placement.followers.get(n, n) for n in (factors[0], factors[-1]))
        for point in (first, second) if ranges[first][0] < 0 else (second,):
            scale, zero_point = symmetric_qparams(max(map(abs, ranges[point])))
            found[point] = QParams(scale, zero_point, 8)
    return found


def _activation_bits(placement: Placement, schemes: dict[fx.Node, Scheme], default: Scheme) -> dict[fx.Node, int]:
    """The widest that a layer reading a point asks for, directly or through what shares its scale; 8 in products."""
    widest: dict[fx.Node, int] = {}
    for node, scheme in schemes.items():
        read = arguments(node)["input"]
        point = placement.followers.get(read, read)
        assert scheme.activation_bits is not None
        widest[point] = max(widest.get(point, 0), scheme.activation_bits)
    # The shares that attention gives add up to 1, which 16 levels cannot tell apart.
    widest |= {node: 8 for product in placement.products for node in product.all_input_nodes}
    assert default.activation_bits is not None
    return {point: widest.get(point, default.activation_bits) for point in placement.points}


def round_layers(
    captured: CapturedModule,
    placement: Placement,
    request: Rounding,
    bits: dict[fx.Node, int],
) -> dict[fx.Node, tuple[Tensor, Tensor]]:
    """Codes and scales of each layer's weight: symmetric, one scale a channel, as kernels take them; rtn's are made
    later."""
    found: dict[fx.Node, tuple[Tensor, Tensor]] = {}
    method = request.method
    if isinstance(method, RTNConfig):
        return found
    weights = [StoredWeight(arguments(n)["weight"], name, n, False) for n, name in placement.weighted.items()]

    def work(weight: StoredWeight, moments: Moments | None) -> Tensor:
        assert weight.reader is not None
        request.on_progress(f"layer {len(found) + 1} of {len(weights)}, {weight.layer}, by {entry_of(method).name}")
        value = get_tensor(captured, str(weight.parameter.target)).detach()
        form = IntegerFormat(bits=bits[weight.reader], symmetric=True)
        quantized = round_weight(value, form, None, method, moments)
        signed = (quantized.codes.to(torch.int16) - form.middle).to(torch.int8).view(value.shape)
        found[weight.reader] = signed, quantized.grid.scale[:, 0]
        return quantized.dequantize().view(value.shape)

    if method.needs_inputs:
        run_layer_by_layer(captured, weights, request.batches, work)
    else:
        for weight in weights:
            work(weight, None)
    return found


def must_be_numbers(captured: CapturedModule, node: fx.Node, layer: str) -> None:
    """Raises CaptureError: the weight or bias that node, of that layer, reads is NaN or infinite."""
    given = arguments(node)
    for what in ("weight", "bias"):
        if given[what] is not None and not get_tensor(captured, str(given[what].target)).isfinite().all():
            raise CaptureError(f"The {what} of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")


def insert_(captured: CapturedModule, found: Calibrated) -> None:
    """Write the quantize and dequantize nodes, and replace weights by their codes, in place."""
    followers = found.placement.followers
    for node, name in found.placement.weighted.items():
        read = arguments(node)["input"]
        _quantize_parameters(captured, node, name, found.points[followers.get(read, read)].scale, found.weights[node])
    for point, qparams in found.points.items():
        _clip_below_only(point, qparams)
        names = register_qparams(captured, point, qparams)
        _round_trip(captured.graph, point, names, qparams.bits)
        for follower in (f for f, root in followers.items() if root is point):
            _round_trip(captured.graph, follower, names, 8)  # its codes are point's, and fit
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.graph.lint()
    captured.recompile()


def register_qparams(captured: CapturedModule, point: fx.Node, qparams: QParams) -> tuple[str, str]:
    """Names of the new buffers that hold scale and zero_point."""
    scale = register(captured, f"{point.name}_scale", qparams.scale)
    return scale, register(captured, f"{point.name}_zero_point", qparams.zero_point)


def _clip_below_only(point: fx.Node, qparams: QParams) -> None:
    """Make relu of relu6 where the largest code does its upper clipping, in place.

    At 8 bits the runtime sees that by itself. Of fewer, it sees a byte whose range goes beyond.
    """
    if qparams.bits == 8 or point.target not in (aten.relu6.default, aten.hardtanh.default):
        return
    upper = arguments(point).get("max_val", 6)
    largest = 2**qparams.bits - 1
    if (upper / qparams.scale).round() + qparams.zero_point >= largest:
        point.target, point.args, point.kwargs = aten.relu.default, point.args[:1], {}


def _round_trip(graph: fx.Graph, node: fx.Node, names: tuple[str, str], bits: int) -> None:
    """Everyone who reads node reads dequantize(limit(quantize(node))) instead; a byte needs no limit."""
    with graph.inserting_after(node):
        dequantized = graph.call_function(ops.dequantize, ())
    with graph.inserting_before(dequantized):
        scale, zero_point = (graph.get_attr(name) for name in names)
        codes = quantized = graph.call_function(ops.quantize, (node, scale, zero_point))
        if bits < 8:
            codes = graph.call_function(ops.limit, (quantized, 2**bits - 1))
    node.replace_all_uses_with(dequantized, lambda user: user is not quantized)
    dequantized.args = (codes, scale, zero_point)
    for made in (quantized, codes, dequantized, scale, zero_point):
        made.meta = {"layer": layer_of(node)}


def _quantize_parameters(
    captured: CapturedModule, node: fx.Node, layer: str, input_scale: Tensor, how: Weights
) -> None:
    given = arguments(node)
    weight = get_tensor(captured, str(given["weight"].target)).detach()
    bias = None if given["bias"] is None else get_tensor(captured, str(given["bias"].target)).detach()
    least = None if bias is None else least_weight_scale(bias, input_scale)
    codes, scale = quantize_weight(weight, how.bits, least, per_tensor=how.scheme.per_tensor)
    if how.rounded is not None:
        codes, scale = _with_method(*how.rounded, codes, scale, least)
    bias_scale = scale * input_scale
    if not bias_scale.isfinite().all():
        raise CaptureError(
            f"Layer '{layer}' cannot be quantized: no float32 scale spans its input, in steps of "
            f"{float(input_scale):.3g}, and its weight or bias. Exclude it, or bring its input nearer to 1."
        )
    _store(captured, given["weight"], codes, scale)
    if bias is not None:
        _store(captured, given["bias"], quantize_bias(bias, bias_scale), bias_scale)


def _with_method(
    rounded: Tensor, chosen: Tensor, codes: Tensor, scale: Tensor, least: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a method has rounded, at the scale it chose, but for channels whose scale has to be larger: those stay as
    given."""
    fits = torch.ones_like(chosen, dtype=torch.bool) if least is None else chosen >= least
    return torch.where(fits.view(-1, *[1] * (codes.ndim - 1)), rounded, codes), torch.where(fits, chosen, scale)


def _store(captured: CapturedModule, parameter: fx.Node, codes: Tensor, scale: Tensor) -> None:
    parts = {"codes": codes, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=codes.dtype)}
    replace_parameter_(captured, parameter, ops.dequantize, parts)
