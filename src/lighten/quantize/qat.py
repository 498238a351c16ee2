"""Quantization-aware training: rounding takes part in training, and the size of every step is learned with the weights.

    prepared = prepare(model, "w4a4; conv1=w8a8; fc=w8a8", calibration=batches)
    trained = fine_tune(prepared, train, loss, FineTuneConfig(epochs=2, lr=0.02))
    quantized = finish(trained)                            # the integer network; export as any other

Source: Esser et al., "Learned Step Size Quantization", arXiv:1902.08153: the gradient of a step size s is, for each
value v = x / s, round(v) - v inside the range and the code at the end beyond it, times 1 / sqrt(n · largest code), n
the weights, or values of a sample, that share s; the gradient of x passes where v is inside.
Differs: the start is a calibrated network with batch norm folded in, its statistics with it. Zero points stay as
calibrated, so that 0 is exact throughout. Weights keep one scale a channel, as integer kernels take them.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.errors import ConfigError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of, set_tensor_
from lighten.quantize.affine import quantize_weight
from lighten.quantize.assignment import SchemeLike, parse_assignment
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.mse import MSEConfig
from lighten.quantize.placement import PRODUCTS, Placement
from lighten.quantize.static import Calibrated, QParams, Weights, calibrate_, insert_, record_
from lighten.quantize.steps import check_steps
from lighten.quantize.steps.bias_correction import mean_inputs, mean_shift
from lighten.quantize.verb import method_config, must_be_unquantized, static_request

METHOD = "qat"


def prepare(
    model: nn.Module,
    scheme: SchemeLike,
    *,
    method: str | MethodConfig | None = None,
    calibration: Iterable[Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    exclude: Iterable[str] = (),
    observer: str | None = None,
    weight_bits: int | None = None,
    steps: str | Iterable[str] = (),
) -> CapturedModule:
    """A copy of model that trains as if it were quantized; model itself is not modified.

    Arguments and errors are those of lighten.quantize; scheme must be one with activations in ranges, such as w4a8 or
    w4a4. method: finds the scales of weights to start from, None = by least squared error.

    Raises:
        ConfigError: also where scheme leaves activations alone or has one scale a tensor.
    """
    assignment = parse_assignment(scheme)
    must_be_unquantized(model)
    for one in assignment.schemes:
        if one.activation_bits is None or one.dynamic or one.per_tensor:
            raise ConfigError(f"{one.name} cannot be trained. Train w<bits>a<bits>, for example w4a8 or w4a4.")
    captured, request = static_request(
        model,
        assignment,
        method=MSEConfig() if method is None else method_config(method),
        calibration=calibration,
        example_inputs=example_inputs,
        exclude=exclude,
        observer=observer,
        weight_bits=weight_bits,
        steps=check_steps(steps),
    )
    corrects = "bias-correction" in request.steps
    if corrects:
        request = replace(request, batches=list(request.batches))
    found = calibrate_(captured, request)
    means = mean_inputs(captured, found.placement.weighted, request.batches) if corrects else {}
    _insert_trainable(captured, found, means)
    record_(captured, request, found, METHOD)
    return captured


def finish(trained: nn.Module) -> CapturedModule:
    """The integer network that trained, a prepared module, has learned to be; trained is not modified.

    Raises:
        ConfigError: trained does not come from prepare.
    """
    if not isinstance(trained, CapturedModule) or all(n.target != fake_quantize for n in trained.graph.nodes):
        raise ConfigError(
            f"{type(trained).__name__} holds nothing that was trained to be rounded. Train what qat.prepare returns."
        )
    captured = copy.deepcopy(trained).eval()
    insert_(captured, _take_out_(captured))
    captured.plan = trained.plan
    return captured


class _FakeQuantize(torch.autograd.Function):
    """x to the nearest of lowest … highest steps, and the gradients of the source."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: int, highest: int, factor: float) -> Tensor:
        exact = x / scale
        ctx.save_for_backward(exact, scale)
        ctx.limits, ctx.factor = (lowest, highest), factor
        return exact.round().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        exact, scale = ctx.saved_tensors
        lowest, highest = ctx.limits
        inside = (exact >= lowest) & (exact <= highest)
        moved = exact.round().clamp_(lowest, highest).sub_(torch.where(inside, exact, 0.0))
        of_scale = (gradient * moved).sum_to_size(scale.shape) * ctx.factor
        return gradient * inside, of_scale, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, lowest: int, highest: int, n: int | None) -> Tensor:
    """x rounded to whole steps of |scale| in lowest … highest, differentiable by both.

    scale: [] or, of a weight [out, …], [out]. n: values that share a step, None = those of a sample, x[0].
    """
    step = scale.abs().clamp(min=torch.finfo(torch.float32).tiny)
    if step.ndim:
        step = step.view(-1, *[1] * (x.ndim - 1))
    shared = x[:1].numel() if n is None else n
    factor = (max(1, shared) * max(highest, -lowest)) ** -0.5
    rounded: Tensor = _FakeQuantize.apply(x, step, lowest, highest, factor)  # type: ignore[no-untyped-call]
    return rounded


def same_step(x: Tensor, point: Tensor) -> Tensor:
    """x itself, moved values of point, which is rounded already; it marks where the runtime is told so."""
    return x


def _insert_trainable(captured: CapturedModule, found: Calibrated, means: Mapping[fx.Node, Tensor]) -> None:
    """Write fake_quantize behind every point and every weight, in place. means: of the inputs of layers whose biases
    are to be corrected."""
    graph = captured.graph
    for node in found.placement.weighted:
        how = found.weights[node]
        parameter = arguments(node)["weight"]
        value = get_tensor(captured, str(parameter.target))
        scale = quantize_weight(value, how.bits)[1] if how.rounded is None else how.rounded[1]
        owner, _, leaf = str(parameter.target).rpartition(".")
        name = _register_step(captured.get_submodule(owner), f"{leaf}_step", scale)
        largest = 2 ** (how.bits - 1) - 1
        step = f"{owner}.{name}".lstrip(".")
        _round_behind(graph, parameter, step, -largest, largest, max(1, value[:1].numel()))
        if node in means:
            _correct_bias_(captured, node, how, scale, means[node])
    behind = {}
    for point, qparams in found.points.items():
        name = _register_step(captured, f"{point.name}_step", qparams.scale)
        behind[point] = _round_behind(graph, point, name, *qparams.levels, None)
    for follower, root in found.placement.followers.items():
        with graph.inserting_after(follower):
            marked = graph.call_function(same_step, ())
        follower.replace_all_uses_with(marked)
        marked.args, marked.meta = (follower, behind[root]), {"layer": layer_of(follower)}
    graph.lint()
    captured.recompile()


def _correct_bias_(captured: CapturedModule, node: fx.Node, how: Weights, scale: Tensor, mean: Tensor) -> None:
    """As bias-correction does: what rounding the weights adds to outputs on average is taken off the bias."""
    given = arguments(node)
    weight, bias = str(given["weight"].args[0].target), str(given["bias"].target)
    value = get_tensor(captured, weight).detach()
    largest = 2 ** (how.bits - 1) - 1
    change = fake_quantize(value, scale, -largest, largest, 1) - value
    set_tensor_(captured, bias, (get_tensor(captured, bias).double() - mean_shift(change, mean)).float().detach())


def _register_step(owner: nn.Module, name: str, scale: Tensor) -> str:
    while hasattr(owner, name):
        name += "_"
    owner.register_parameter(name, nn.Parameter(scale.detach().clone()))
    return name


def _round_behind(graph: fx.Graph, node: fx.Node, step_name: str, lowest: int, highest: int, n: int | None) -> fx.Node:
    """The node that rounds what node makes, which all its readers read instead."""
    with graph.inserting_after(node):
        rounded = graph.call_function(fake_quantize, ())
    with graph.inserting_before(rounded):
        step = graph.get_attr(step_name)
    node.replace_all_uses_with(rounded)
    rounded.args = (node, step, lowest, highest, n)
    step.meta = rounded.meta = {"layer": layer_of(node)}
    return rounded


def _factors_of_products(graph: fx.Graph) -> set[fx.Node]:
    """What is rounded for a product of activations."""
    rounded = set()
    for product in (node for node in graph.nodes if node.target in PRODUCTS):
        for factor in product.all_input_nodes:
            behind = factor.args[1] if factor.target == same_step else factor
            if isinstance(behind, fx.Node) and behind.target == fake_quantize:
                source = behind.args[0]
                assert isinstance(source, fx.Node)
                rounded.add(source)
    return rounded


def _take_out_(captured: CapturedModule) -> Calibrated:
    """Remove what _insert_trainable wrote, in place; returns what training made of it."""
    graph, plan = captured.graph, captured.plan
    assignment = parse_assignment(str(plan.scheme))
    points: dict[fx.Node, QParams] = {}
    steps: dict[fx.Node, tuple[Tensor, int]] = {}  # of weights, with their largest code
    followers: dict[fx.Node, fx.Node] = {}
    factors = _factors_of_products(graph)
    for node in list(graph.nodes):
        if node.target == same_step:
            followers[node.args[0]] = node.args[1].args[0]
    for node in list(graph.nodes):
        if node.target == same_step:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target == fake_quantize:
            source, step, lowest, highest, _ = node.args
            scale = _learned_step(captured, str(step.target))
            if source.op == "get_attr":
                steps[source] = scale, highest
            else:
                is_signed = source in factors and lowest == torch.iinfo(torch.int8).min
                zero_point = torch.tensor(0 if is_signed else -lowest, dtype=torch.int8 if is_signed else torch.uint8)
                points[source] = QParams(scale, zero_point, (highest - lowest).bit_length())
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            graph.erase_node(step)
            _delete(captured, str(step.target))
    weighted, weights = {}, {}
    for node in graph.nodes:
        parameter = arguments(node).get("weight") if node.op == "call_function" else None
        if not isinstance(parameter, fx.Node) or parameter not in steps:
            continue
        weighted[node] = layer_of(parameter) or layer_of(node)
        scale, largest = steps[parameter]
        value = get_tensor(captured, str(parameter.target)).detach()
        codes = (value / scale.view(-1, *[1] * (value.ndim - 1))).round().clamp(-largest, largest).to(torch.int8)
        scheme = assignment.of(weighted[node], layer_of(node))
        weights[node] = Weights(scheme, largest.bit_length() + 1, (codes, scale))
    placement = Placement(tuple(points), followers, weighted, (), plan.skipped)  # products have their points already
    return Calibrated(placement, points, weights)


def _learned_step(captured: CapturedModule, name: str) -> Tensor:
    return get_tensor(captured, name).detach().abs().clamp(min=torch.finfo(torch.float32).tiny)


def _delete(captured: CapturedModule, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    delattr(captured.get_submodule(owner), leaf)
