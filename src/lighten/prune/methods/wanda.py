"""Wanda: a weight matters as much as what it usually adds to its output, |w| · ‖x‖.

Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
Differs: the paper compares weights within an output; here scores are compared over the layer (or all), so they are
those of the weight as it runs, batch norm folded in. Under n:m, where a run lies within an output, it is the paper's.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lighten.prune.methods.layer_data import LayerData, relative, weight_importance


@dataclass(frozen=True, kw_only=True)
class WandaConfig:
    """No settings."""

    needs: ClassVar[str] = "inputs"


@weight_importance("wanda", WandaConfig)
def wanda(layer: LayerData, config: WandaConfig) -> Tensor:
    """|w| · ‖x‖ over its mean in the layer, [out, columns]."""
    assert layer.input_square is not None
    norms = layer.input_square.sqrt().to(layer.weight.dtype)  # [groups, columns]
    return relative(layer.effective.abs() * norms.repeat_interleave(len(layer.weight) // layer.groups, 0))
