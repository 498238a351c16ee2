"""Random: the control that every criterion has to beat; the text's own pruning, with exact counts."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.prune.methods.layer_data import LayerData, weight_importance


@dataclass(frozen=True, kw_only=True)
class RandomWeightsConfig:
    """seed: of the generator; layers that differ draw different numbers."""

    seed: int = 0


@weight_importance("random", RandomWeightsConfig)
def random(layer: LayerData, config: RandomWeightsConfig) -> Tensor:
    """Uniform in 0..1, [out, columns]."""
    # Layers of one shape must not all lose the same places; their bytes tell them apart without a name.
    own = zlib.crc32(layer.weight.contiguous().cpu().numpy().tobytes(), config.seed % 2**32)
    generator = torch.Generator().manual_seed(own)
    return torch.rand(layer.weight.shape, generator=generator)
