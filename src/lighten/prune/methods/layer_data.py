"""What a method for single weights is given: one layer as a matrix, with what calibration found out about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighten.prune.patterns import Pattern
from lighten.registry import Registry


@dataclass(frozen=True, kw_only=True)
class LayerData:
    """A layer as its pattern sees it. Only what the method's config says in `needs` is there, the rest is None.

    weight [out, columns] float32. output_scale [out]: what batch norm multiplies each output with in eval mode, else 1.
    groups: of a convolution; outputs and inputs fall into as many equal parts.
    input_square [groups, columns]: mean square of each input (needs = "inputs").
    hessian [groups, columns, columns] float64: 2 X Xᵀ / n (needs = "hessian"; input_square is there too).
    gradient, fisher [out, columns]: mean of the loss gradient and of its square a sample (needs = "gradients").
    """

    weight: Tensor
    output_scale: Tensor
    groups: int = 1
    input_square: Tensor | None = None
    hessian: Tensor | None = None
    gradient: Tensor | None = None
    fisher: Tensor | None = None

    @property
    def effective(self) -> Tensor:
        """[out, columns] the weight as it runs in eval mode, batch norm folded in."""
        return self.weight * self.output_scale[:, None]


# (LayerData, config) -> scores [out, columns], higher = keep, finite, in a unit that compares across layers.
weight_importance: Registry[Callable[[LayerData, Any], Tensor]] = Registry("importance criterion for single weights")

# (LayerData, pattern, mask, config) -> new effective weight and mask, both [out, columns]. mask is the choice by the
# scores of the same name; the new one prunes as many units in each group of the convolution.
weight_update: Registry[Callable[[LayerData, Pattern, Tensor, Any], tuple[Tensor, Tensor]]] = Registry(
    "method that updates weights"
)


def relative(scores: Tensor) -> Tensor:
    """scores [out, columns] >= 0 over their mean: layers of different scale compare."""
    return scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)
