"""Reconstruct: layer after layer, move the surviving weights so that the output stays what it was.

With sequential=True a layer is fitted to what it will read once the layers before it are pruned, and aims at what the
*dense* network made of its own input: errors do not add up on their way through the network. First the best dense
weight for the new input, W X X̂ᵀ (X̂ X̂ᵀ)⁻¹, then the method's own pruning of it under the Hessian of X̂. It takes one
run up to the layer through both networks for each layer. Measured on ResNet-20, Fashion-MNIST, sparsegpt, 80 % of the
weights gone: accuracy 0.906 with it, 0.312 with the new Hessian alone, 0.329 with one pass over the dense network.
Source: Frantar & Alistarh, "Optimal Brain Compression", arXiv:2208.11580, sec. 6 (sequential OBC).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lighten.graph.capture import CapturedModule, capture, get_tensor
from lighten.prune.calibration import paired_moments
from lighten.prune.layers import WeightLayer
from lighten.prune.methods.inverse import damped
from lighten.prune.methods.layer_data import LayerData, weight_update
from lighten.prune.patterns import Pattern


def reconstruct_(
    captured: CapturedModule,
    layers: list[WeightLayer],
    data: dict[str, LayerData],
    masks: list[Tensor],
    *,
    method: str,
    config: Any,
    pattern: Pattern,
    batches: Iterable[Any],
) -> list[Tensor]:
    """Prune the layers of captured, in place and in order, with the update of that method; returns their masks.

    data: by layer name, from the dense network; what was used is dropped. masks: the choice by scores, [out, columns].
    batches: inputs; read once for each layer where config.sequential.
    """
    update = weight_update[method].function
    dense = capture(captured, ())  # a copy
    made = []
    for layer, chosen in zip(layers, masks, strict=True):
        known = data.pop(layer.name)
        if chosen.all():
            made.append(chosen)
            continue
        if config.sequential:
            known = _fitted(dense, captured, layer, known, pattern, batches, config.damping)
        effective, mask = update(known, pattern, chosen, config)
        weight = get_tensor(captured, layer.parameter)
        scale = known.output_scale[:, None]
        # An output that batch norm multiplies with 0 says nothing about its weights: they stay as they are.
        new = torch.where(scale > 0, effective / scale.clamp(min=torch.finfo(scale.dtype).tiny), known.weight)
        weight.data.copy_(pattern.restore(new.masked_fill(~mask, 0), weight.shape))
        made.append(mask)
    return made


def _fitted(
    dense: CapturedModule,
    pruned: CapturedModule,
    layer: WeightLayer,
    known: LayerData,
    pattern: Pattern,
    batches: Iterable[Any],
    damping: float,
) -> LayerData:
    """known with the weight and the Hessian for what the layer reads in pruned."""
    own, cross = paired_moments(dense, pruned, layer, batches)
    order = pattern.column_order(get_tensor(pruned, layer.parameter).shape)
    own, cross = own[:, order][:, :, order], cross[:, order][:, :, order]
    parts = [
        nearest_outputs(weight, o, c, damping, near=weight)
        for weight, o, c in zip(known.weight.double().chunk(known.groups), own, cross, strict=True)
    ]
    return replace(known, weight=torch.cat(parts).to(known.weight.dtype), hessian=2 * own)


def nearest_outputs(weight: Tensor, own: Tensor, cross: Tensor, damping: float, near: Tensor) -> Tensor:
    """argmin over V [out, columns of X̂] of ‖W X − V X̂‖² + damping · ‖near − V‖² (in units of own's mean diagonal).

    weight: W [out, columns of X]. own: X̂ X̂ᵀ, cross: X X̂ᵀ, both over n. near: of V's shape.
    """
    held = damped(own, damping)
    pull = held - own  # the damping as a matrix
    factor = torch.linalg.cholesky(held)
    return torch.cholesky_solve((weight @ cross + near @ pull).T, factor).T
