"""Static quantization: weights and activations as integers, activation ranges from calibration.

Source: Jacob et al., arXiv:1712.05877, for the arithmetic; Nagel et al., arXiv:2106.08295, sec. 3, for the recipe.
The result holds integer codes, and computes in float what integer kernels compute: codes of a tensor times its scale,
a bias in int32 steps of input scale · weight scale, one rounding where a kernel ends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, capture, flat_inputs, get_tensor, layer_of
from lighten.graph.fold import fold_batch_norm_
from lighten.graph.groups import matches
from lighten.plan import LayerPlan
from lighten.quantize import observers, ops  # noqa: F401  importing observers fills the registry
from lighten.quantize.affine import least_weight_scale, qparams_of_range, quantize_bias, quantize_weight
from lighten.quantize.placement import Placement, place
from lighten.quantize.scheme import Scheme, parse_scheme
from lighten.registry import observer as observer_registry
from lighten.task import as_args

Ranges = dict[fx.Node, tuple[float, float]]


def quantize(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    method: str | None = None,
    calibration: Iterable[Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    exclude: Iterable[str] = (),
    observer: str = "mse",
    weight_bits: int | None = None,
) -> CapturedModule:
    """A quantized copy of model; model itself is not modified.

    scheme: "w8a8". method: how weights are rounded; None = to nearest. calibration: batches of inputs (a tensor, or a
    tuple of tensors); their ranges become the activations' scales. example_inputs: positional arguments of model;
    None = the first calibration batch. exclude: shell patterns over module names that stay float. observer: how ranges
    are chosen. weight_bits: fewer than the scheme's for a CPU whose 8-bit products saturate (see
    lighten.runtime.cpu.int8_saturates). What was quantized and what was left alone is in the result's `plan`.

    Raises:
        ConfigError: a setting is unknown. TaskError: no calibration data, or NaN in it. CaptureError: see capture.
    """
    chosen = parse_scheme(scheme)
    if method not in (None, "rtn"):
        raise ConfigError(f"There is no rounding method '{method}' for {chosen.name}. Available: rtn (the default).")
    batches = list(calibration or ())
    if not batches:
        raise TaskError(
            f"{chosen.name} needs calibration data to find the ranges of activations, and got none. "
            "Pass calibration=[batch, …]; 100 to 500 typical samples are enough."
        )
    bits = weight_bits or chosen.weight_bits
    captured = capture(model, as_args(batches[0]) if example_inputs is None else example_inputs)
    fold_batch_norm_(captured)
    placement = place(captured.graph, _excluded(captured, tuple(exclude)))
    ranges = observe_ranges(captured, placement.points, batches, observer)
    _insert(captured, placement, ranges, bits)
    quantized = {name: LayerPlan(scheme=chosen.name) for name in _quantized_names(captured)}
    captured.plan = captured.plan.with_layers(
        quantized, skipped=placement.skipped, scheme=chosen.name, observer=observer, weight_bits=bits
    )
    return captured


def observe_ranges(
    captured: CapturedModule, points: Iterable[fx.Node], batches: Iterable[Any], observer: str
) -> Ranges:
    """The range of every point over batches, as the observer of that name sees it. Memory: one batch's activations.

    Raises:
        TaskError: an activation is NaN or infinite; the message names the layer.
    """
    entry = observer_registry[observer]
    watching = {point: entry.function(entry.config()) for point in points}

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in watching:
                if not value.isfinite().all():
                    raise TaskError(
                        f"The activation '{n.name}' of layer '{layer_of(n)}' is NaN or infinite during calibration. "
                        "Check the calibration data and the weights of the layers before it."
                    )
                watching[n].observe(value)
            return value

    with torch.no_grad():
        for batch in batches:
            Watcher(captured).run(*flat_inputs(as_args(batch)), enable_io_processing=False)
    return {point: watcher.range() for point, watcher in watching.items()}


def _insert(captured: CapturedModule, placement: Placement, ranges: Ranges, weight_bits: int) -> None:
    """Write the quantize and dequantize nodes, and replace weights by their codes, in place."""
    qparams = {}
    for point, (low, high) in ranges.items():
        scale, zero_point = qparams_of_range(low, high)
        captured.register_buffer(f"{point.name}_scale", scale)
        captured.register_buffer(f"{point.name}_zero_point", zero_point)
        qparams[point] = scale
    inputs = {node: _root_of(placement, arguments(node)["input"]) for node in placement.weighted}
    for node in placement.weighted:
        _quantize_parameters(captured, node, qparams[inputs[node]], weight_bits)
    for node in (*placement.points, *placement.followers):
        _round_trip(captured.graph, node, placement.followers.get(node, node).name)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.graph.lint()
    captured.recompile()


def _root_of(placement: Placement, node: fx.Node) -> fx.Node:
    return placement.followers.get(node, node)


def _round_trip(graph: fx.Graph, node: fx.Node, owner: str) -> None:
    """Everyone who reads node reads dequantize(quantize(node)) instead, with the scale registered under owner."""
    with graph.inserting_after(node):
        dequantized = graph.call_function(ops.dequantize, ())
    with graph.inserting_before(dequantized):
        scale = graph.get_attr(f"{owner}_scale")
        zero_point = graph.get_attr(f"{owner}_zero_point")
        codes = graph.call_function(ops.quantize, (node, scale, zero_point))
    node.replace_all_uses_with(dequantized, lambda user: user is not codes)
    dequantized.args = (codes, scale, zero_point)
    for made in (codes, dequantized, scale, zero_point):
        made.meta = {"layer": layer_of(node)}


def _quantize_parameters(captured: CapturedModule, node: fx.Node, input_scale: Tensor, bits: int) -> None:
    given = arguments(node)
    name = str(given["weight"].target)
    weight = get_tensor(captured, name)
    if not weight.isfinite().all():
        raise CaptureError(f"The weight '{name}' holds NaN or infinite values. Check the checkpoint.")
    bias_node = given["bias"]
    bias = None if bias_node is None else get_tensor(captured, str(bias_node.target))
    least = None if bias is None else least_weight_scale(bias, input_scale)
    codes, scale = quantize_weight(weight, bits, least)
    _store(captured, given["weight"], codes, scale)
    if bias is not None:
        bias_scale = scale * input_scale
        _store(captured, bias_node, quantize_bias(bias, bias_scale), bias_scale)


def _store(captured: CapturedModule, parameter: fx.Node, codes: Tensor, scale: Tensor) -> None:
    """Put codes and the node that dequantizes them in the place of a parameter."""
    owner_name, _, leaf = str(parameter.target).rpartition(".")
    owner = captured.get_submodule(owner_name)
    delattr(owner, leaf)
    parts = {"codes": codes, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=codes.dtype)}
    graph = captured.graph
    with graph.inserting_before(parameter):
        nodes = []
        for part, value in parts.items():
            owner.register_buffer(f"{leaf}_{part}", value)
            nodes.append(graph.get_attr(f"{owner_name}.{leaf}_{part}".lstrip(".")))
        stored = graph.call_function(ops.dequantize, tuple(nodes))
    for node in (*nodes, stored):
        node.meta = dict(parameter.meta)
    parameter.replace_all_uses_with(stored)
    graph.erase_node(parameter)


def _excluded(captured: CapturedModule, patterns: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name, _ in captured.named_modules() if name and matches(name, patterns))


def _quantized_names(captured: CapturedModule) -> list[str]:
    suffix = ".weight_codes"
    return [name.removesuffix(suffix) for name, _ in captured.named_buffers() if name.endswith(suffix)]
