"""Bias correction: what rounding adds to a layer's outputs on average is taken off its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721.
`correct_biases_` is the empirical way of appendix D, layer by layer: the mean output over the calibration data of the
rounded network, corrected up to there, against that of the float network. It sees what rounded and clipped inputs do,
too. `mean_shift` is the analytic way of sec. 4.2, E[Ŵx] = E[Wx] + (Ŵ - W) E[x], for a network that is still trained;
E[x] is the mean of the calibration data, padding included.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.capture import CapturedModule, get_tensor, set_tensor_
from lighten.quantize import ops
from lighten.quantize.layerwise import Run, last_uses
from lighten.quantize.moments import rows_of_input
from lighten.quantize.placement import CONVOLUTIONS
from lighten.quantize.ranges import watch


def correct_biases_(
    captured: CapturedModule, exact: CapturedModule, twins: Mapping[fx.Node, fx.Node], batches: Iterable[Any]
) -> None:
    """Move the biases of captured so that layers' outputs are on average over batches what they are in exact, in place.

    twins: layers of captured, each with a bias of its own, and what they are in exact, in the order of both graphs. A
    layer sees what those before it make once they are corrected. Held at a time: the tensors that later nodes still
    need, for all batches and of both networks.
    """
    pairs = [(Run(captured, i, batch), Run(exact, i, batch)) for i, batch in enumerate(batches)]
    freed, freed_exact = last_uses(captured.graph), last_uses(exact.graph)
    ahead = iter(exact.graph.nodes)
    with torch.no_grad():
        for node in captured.graph.nodes:
            for run, _ in pairs:
                run.step(node)
            if node in twins:
                for passed in ahead:
                    for _, goal in pairs:
                        goal.step(passed)
                    if passed is twins[node]:
                        break
                    _forget(freed_exact.get(passed, ()), [goal for _, goal in pairs])
                axis = 1 if node.target in CONVOLUTIONS else -1
                gap = _mean_gap([(run.env[node], goal.env[twins[node]]) for run, goal in pairs], axis)
                moved = _add_to_bias_(captured, node, -gap)
                for run, _ in pairs:
                    run.env[node] = run.env[node] + ops.along(moved, run.env[node], axis)
                _forget(freed_exact.get(twins[node], ()), [goal for _, goal in pairs])
            _forget(freed.get(node, ()), [run for run, _ in pairs])


def exact_twins(captured: CapturedModule, layers: Iterable[fx.Node]) -> tuple[CapturedModule, dict[fx.Node, fx.Node]]:
    """A copy of captured, which is float so far, and what layers are in it; as correct_biases_ needs both later."""
    exact = copy.deepcopy(captured)
    copies = dict(zip(captured.graph.nodes, exact.graph.nodes, strict=True))
    return exact, {node: copies[node] for node in layers}


def _forget(nodes: Iterable[fx.Node], runs: list[Run]) -> None:
    for node in nodes:
        for run in runs:
            run.env.pop(node, None)


def _mean_gap(outputs: list[tuple[Tensor, Tensor]], axis: int) -> Tensor:
    """[channels] float64: how much larger the first of each pair is than the second, on average over all."""
    sums = [(made - wanted).movedim(axis, 0).flatten(1).double() for made, wanted in outputs]
    return torch.stack([gaps.sum(1) for gaps in sums]).sum(0) / max(1, sum(gaps.shape[1] for gaps in sums))


def _add_to_bias_(captured: CapturedModule, layer: fx.Node, shift: Tensor) -> Tensor:
    """Add shift [out] to layer's bias, in whole steps if it has integer codes; returns what was added."""
    bias = arguments(layer)["bias"]
    if bias.target != ops.dequantize:
        name = str(bias.target)
        before = get_tensor(captured, name).detach()
        set_tensor_(captured, name, (before.double() + shift).to(before.dtype))
        return get_tensor(captured, name).detach() - before
    codes_name, scale = str(bias.args[0].target), get_tensor(captured, str(bias.args[1].target))
    codes, limits = get_tensor(captured, codes_name), torch.iinfo(torch.int32)
    after = (codes.double() + (shift / scale.double()).round()).clamp(limits.min, limits.max).to(torch.int32)
    set_tensor_(captured, codes_name, after)
    return ((after.double() - codes.double()) * scale.double()).to(scale.dtype)


def mean_inputs(captured: CapturedModule, layers: Iterable[fx.Node], batches: Iterable[Any]) -> dict[fx.Node, Tensor]:
    """[groups, columns] float64 the mean of what each of layers multiplies with its weights' rows."""
    sources = {layer: arguments(layer)["input"] for layer in layers}
    sums: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = {}

    def look(node: fx.Node, value: Tensor) -> None:
        for layer, source in sources.items():
            if source is not node:
                continue
            shape = get_tensor(captured, str(arguments(layer)["weight"].target)).shape
            for rows in rows_of_input(layer, value, shape):
                sums[layer] = sums.get(layer, torch.zeros(())) + rows.double().sum(1)
                counts[layer] = counts.get(layer, 0) + rows.shape[1]

    watch(captured, set(sources.values()), batches, look)
    return {layer: total / counts[layer] for layer, total in sums.items()}


def mean_shift(change: Tensor, mean: Tensor) -> Tensor:
    """[out] how far outputs move on average when weights [out, …] change. mean: [groups, columns]."""
    rows = change.double().flatten(1).unflatten(0, (len(mean), -1))  # [groups, out / groups, columns]
    shift: Tensor = (rows @ mean[..., None]).flatten()
    return shift


def give_bias_(captured: CapturedModule, layer: fx.Node) -> None:
    """Let layer, a linear layer or convolution, have a bias of zeros if it has none, in place."""
    given = arguments(layer)
    if given["bias"] is not None:
        return
    owner, _, _ = str(given["weight"].target).rpartition(".")
    module = captured.get_submodule(owner)
    if hasattr(module, "bias") and module.bias is None:
        del module.bias
    weight = get_tensor(captured, str(given["weight"].target))
    name = "bias"
    while hasattr(module, name):
        name += "_"
    module.register_parameter(name, nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad))
    with captured.graph.inserting_after(given["weight"]):
        bias = captured.graph.get_attr(f"{owner}.{name}".lstrip("."))
    bias.meta = dict(given["weight"].meta)
    set_argument_(layer, "bias", bias)
