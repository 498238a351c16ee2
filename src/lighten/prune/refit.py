"""Refit: layers that lost inputs make up for them with those that are left, so that their outputs stay what they were.

Layer after layer in the order of the graph, each on what it reads once the layers before it are pruned and refitted;
it aims at what the dense network made of its own inputs, of which only the second moments are needed.
Sources: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, sec. 3.1, for least
squares after channels have gone; Luo et al., "ThiNet", arXiv:1707.06342, sec. 3.2.2. Differs: the inputs are those of
the pruned network, as in lighten.prune.reconstruct, and the weights are held near what they were by damping.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.labels import Labels
from lighten.graph.rewrite import zeroed_units
from lighten.prune.calibration import paired_moments
from lighten.prune.history import removals
from lighten.prune.layers import WeightLayer, find_layers
from lighten.prune.reconstruct import nearest_outputs

DAMPING = 0.01


def refit_(
    dense: CapturedModule, pruned: CapturedModule, batches: Iterable[Any], *, damping: float = DAMPING
) -> dict[str, str]:
    """Refit the linear layers and convolutions of pruned whose inputs its last removal made fewer, in place.

    dense: what pruned was before that removal. batches: of inputs, read once for each layer. damping: see
    nearest_outputs. Returns which of those layers were left as they were, and why.

    Raises:
        TaskError: a batch does not fit the model.
    """
    kept = removals(pruned)[-1].kept
    layers, left = find_layers(pruned)
    refused = {name: why.replace("not pruned", "not refitted") for name, why in left.items()}
    groups = {node.name: arguments(node).get("groups", 1) for node in dense.graph.nodes if "weight" in arguments(node)}
    for layer in layers:
        if (layer.parameter, 1) not in kept:
            continue
        if groups[layer.nodes[0].name] != layer.groups:
            refused[layer.name] = "not refitted: its groups became fewer"
            continue
        _refit_layer_(dense, pruned, layer, kept.get((layer.parameter, 0)), batches, damping)
    lost = {parameter.rpartition(".")[0] for parameter, axis in kept if axis == 1}
    return {name: why for name, why in refused.items() if name in lost}


def _refit_layer_(
    dense: CapturedModule,
    pruned: CapturedModule,
    layer: WeightLayer,
    rows: Tensor | None,
    batches: Iterable[Any],
    damping: float,
) -> None:
    """rows: of the dense weight that stayed, None = all."""
    own, cross = paired_moments(dense, pruned, layer, batches)
    weight = get_tensor(pruned, layer.parameter)
    before = get_tensor(dense, layer.parameter).detach().double().flatten(1)
    before = before if rows is None else before[rows]
    near = weight.detach().double().flatten(1)
    parts = zip(before.chunk(layer.groups), own, cross, near.chunk(layer.groups), strict=True)
    fitted = torch.cat([nearest_outputs(w, o, c, damping, near=n) for w, o, c, n in parts])
    weight.data.copy_(fitted.view(weight.shape))


def fitted_without(
    captured: CapturedModule,
    labels: Labels,
    units: Tensor,
    layers: Sequence[WeightLayer],
    moments: Mapping[str, Tensor],
    *,
    damping: float = DAMPING,
) -> dict[str, Tensor]:
    """The tensors that change when the units go and each of layers that reads some makes up for them, by name.

    What owns a unit is zero there, as in zeroed_units; captured is left as it is. Each layer is fitted by itself, to
    what the dense network's inputs make of it: a forecast of what refit_ does after a removal, without a pass.
    moments: [1, columns, columns] of what each layer reads, by its name, see input_statistics.
    """
    changed = zeroed_units(captured, labels, units)
    by_parameter = {layer.parameter: layer for layer in layers}
    for slot in labels.slots:
        layer = by_parameter.get(slot.parameter)
        gone = torch.isin(slot.ids, units)
        if layer is None or slot.axis != 1 or layer.groups != 1 or not gone.any() or gone.all():
            continue
        zeroed, weight = changed[slot.parameter], get_tensor(captured, slot.parameter).detach().double()
        kept = (~gone).repeat_interleave(weight[0, 0].numel())
        (read,) = moments[layer.name]
        rows = zeroed.flatten(1).any(1)  # the others go themselves
        before = weight.flatten(1)[rows]
        fitted = nearest_outputs(before, read[kept][:, kept], read[:, kept], damping, near=before[:, kept])
        matrix = torch.zeros_like(zeroed).flatten(1)
        matrix[rows.nonzero(), kept.nonzero()[:, 0]] = fitted.to(matrix.dtype)
        changed[slot.parameter] = matrix.view_as(zeroed)
    return changed
