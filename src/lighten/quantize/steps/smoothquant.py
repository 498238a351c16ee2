"""SmoothQuant: hand outliers of an activation's channels over to the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
arXiv:2211.10438: channel j is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) by what makes it (a layer norm, or
a linear layer), and the weights that read it are multiplied by it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import ConfigError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.quantize.placement import aten
from lighten.quantize.ranges import watch
from lighten.quantize.rescale import divide_output_, maker_of, multiply_input_


@dataclass(frozen=True, kw_only=True)
class SmoothQuantConfig:
    """alpha: how much of the difficulty goes to the weights, 0..1."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha} is outside 0..1. The default is 0.5.")


def smooth_(captured: CapturedModule, batches: Iterable[Any], config: SmoothQuantConfig) -> list[fx.Node]:
    """Smooth every activation that only linear layers read and that can be divided where it is made, in place.

    Returns these activations.
    """
    found = {}
    for node in captured.graph.nodes:
        readers = list(node.users)
        if readers and all(_is_free_linear(reader, node) for reader in readers):
            maker = maker_of(captured, node, only_reader=False)
            if maker is not None and maker.target in (aten.layer_norm.default, aten.linear.default):
                found[node] = maker
    largest: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, value: Tensor) -> None:
        size = value.abs().flatten(0, -2).amax(0)
        largest[node] = size if node not in largest else largest[node].maximum(size)

    watch(captured, found, batches, look)
    for node, maker in found.items():
        readers = list(node.users)
        weights = [get_tensor(captured, str(arguments(r)["weight"].target)).detach() for r in readers]
        factors = smoothing_factors(largest[node], torch.cat(weights).abs().amax(0), config.alpha)
        divide_output_(captured, maker, factors)
        for reader in readers:
            multiply_input_(captured, reader, factors)
    return list(found)


def smoothing_factors(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s [channels] from the largest magnitudes of either; 1 where one is zero."""
    usable = (activation > 0) & (weight > 0)
    factors = torch.where(usable, activation, 1.0) ** alpha / torch.where(usable, weight, 1.0) ** (1 - alpha)
    return torch.where(usable, factors, 1.0)


def _is_free_linear(reader: fx.Node, node: fx.Node) -> bool:
    if reader.target != aten.linear.default:
        return False
    given = arguments(reader)
    weight = given["weight"]
    return given["input"] is node and weight.op == "get_attr" and len(weight.users) == 1
