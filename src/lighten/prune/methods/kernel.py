"""Kernel importance of single weights: what the others cover can go, by the text's formula.

See lighten.prune.importance.density for the formula, the fault of its sample, and how the kept set is chosen. Sorting
apart it is linear in the weights: a million take about half a second.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.importance.density import line_removal_order
from lighten.prune.methods.layer_data import LayerData, weight_importance


@dataclass(frozen=True, kw_only=True)
class KernelWeightsConfig:
    """bandwidth: of the kernel, in standard deviations of the layer's weights. rounds: how often the kept set is looked
    at again while it shrinks."""

    bandwidth: float = 1.0
    rounds: int = 8

    def __post_init__(self) -> None:
        if not 0.001 <= self.bandwidth < float("inf"):
            raise ConfigError(f"bandwidth={self.bandwidth} is below 0.001 standard deviations. Use 1.")
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} is below 1. Use 8.")


@weight_importance("kernel", KernelWeightsConfig)
def kernel(layer: LayerData, config: KernelWeightsConfig) -> Tensor:
    """The place in the order of removal over the number of weights, [out, columns]; layers compare by it."""
    flat = layer.weight.double().flatten()
    spread = float(flat.std(correction=0))
    # Equal weights have no spread; all of them cover each other, and the first go first.
    order = line_removal_order(flat / spread if spread > 0 else torch.zeros_like(flat), config.bandwidth, config.rounds)
    scores = torch.empty(len(flat))
    scores[order] = torch.arange(1, len(flat) + 1) / len(flat)
    return scores.view(layer.weight.shape)
