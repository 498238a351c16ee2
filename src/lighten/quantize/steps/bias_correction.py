"""Bias correction: what rounding the weights adds to a layer's outputs on average is taken off its bias.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
sec. 4.2: E[Ŵx] = E[Wx] + (Ŵ - W) E[x]. Here E[x] is the mean of the calibration data, padding included.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.quantize.moments import rows_of_input
from lighten.quantize.ranges import watch


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
