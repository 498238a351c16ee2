"""OBD: what the loss rises by when a weight goes, by the diagonal of the Hessian: ½ w² h.

Source: LeCun, Denker & Solla, "Optimal Brain Damage", NIPS 1989. h is the empirical Fisher diagonal, the mean square
of the samples' gradients, which is never negative and equals the Hessian where the model fits its data.
`hessian` is another name of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.prune.methods.layer_data import LayerData, weight_importance


@dataclass(frozen=True, kw_only=True)
class OBDConfig:
    """No settings."""

    needs: ClassVar[str] = "gradients"


@dataclass(frozen=True, kw_only=True)
class HessianWeightsConfig(OBDConfig):
    """No settings."""


@weight_importance("obd", OBDConfig)
@weight_importance("hessian", HessianWeightsConfig)
def obd(layer: LayerData, config: OBDConfig) -> Tensor:
    """½ w² h [out, columns]: in units of the loss, so that layers compare as they are."""
    assert layer.fisher is not None
    return (layer.weight.square() * layer.fisher / 2).clamp(max=torch.finfo(layer.weight.dtype).max / 1e9)
