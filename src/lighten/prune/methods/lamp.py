"""LAMP: the share that a weight has in all weights of its layer that would outlive it; the last one counts 1.

Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611, eq. 4: with the weights
sorted, w_u² / Σ_{v ≥ u} w_v². Made for scope="global": it is its normalization, so no layer is ever emptied.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.prune.methods.layer_data import LayerData, relative, weight_importance


@dataclass(frozen=True, kw_only=True)
class LAMPConfig:
    """No settings."""


@weight_importance("lamp", LAMPConfig)
def lamp(layer: LayerData, config: LAMPConfig) -> Tensor:
    """Scores in 0..1, [out, columns]; within a layer they rank as magnitudes do."""
    square = relative(layer.weight.abs()).double().square().flatten()
    order = square.argsort(stable=True)
    outliving = square[order].flip(0).cumsum(0).flip(0).clamp(min=torch.finfo(square.dtype).tiny)
    scores = torch.empty_like(square)
    scores[order] = square[order] / outliving
    return scores.view(layer.weight.shape).to(layer.weight.dtype)
