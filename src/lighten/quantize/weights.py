"""Weights: which parameters of a graph are matrices that layers multiply with, and who reads them."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of
from lighten.graph.groups import matches
from lighten.quantize.placement import CONVOLUTIONS, FLOAT_ONLY, WEIGHTED, aten

_MULTIPLIES = WEIGHTED | FLOAT_ONLY
# What a stored weight may pass through on the way to its layer: attention splits the one of its three projections.
_PASSES = {
    *(aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, operator.getitem, aten.slice.Tensor),
    *(aten.transpose.int, aten.t.default, aten.permute.default, aten.view.default, aten.reshape.default),
}
# Layers whose input makes the second moments that data-driven rounding needs.
OBSERVABLE = CONVOLUTIONS | {aten.linear.default}


@dataclass(frozen=True)
class StoredWeight:
    """One parameter. layer: the module it lives in. reader: the first layer that reads it as it is, and whose input
    can be watched; None = there is none. shared: other layers read it, too."""

    parameter: fx.Node
    layer: str
    reader: fx.Node | None
    shared: bool


def find_weights(captured: CapturedModule, exclude: Iterable[str] = ()) -> tuple[list[StoredWeight], dict[str, str]]:
    """The weights in the order of the graph, and what stays float with the reason, by layer.

    A weight that several layers read is one weight. exclude: shell patterns over names of layers.
    """
    exclude = tuple(exclude)
    found: list[StoredWeight] = []
    skipped: dict[str, str] = {}
    for node in captured.graph.nodes:
        if node.op != "get_attr":
            continue
        value = get_tensor(captured, str(node.target))
        if value.ndim < 2 or not value.is_floating_point():
            continue
        layer = layer_of(node)
        readers = list(_readers(node))
        if not readers:
            if isinstance(value, Tensor) and str(node.target) in dict(captured.named_parameters()):
                skipped[layer or str(node.target)] = (
                    f"not quantized: '{node.target}' is not the weight of a linear, convolution, embedding or "
                    "recurrent layer"
                )
        elif any(matches(name, exclude) for name in (layer, *map(layer_of, readers))):
            skipped[layer] = "not quantized: excluded"
        elif value.numel() == 0:
            skipped[layer] = "not quantized: its weight is empty"
        else:
            direct = [r for r in readers if r.target in OBSERVABLE and arguments(r)["weight"] is node]
            found.append(StoredWeight(node, layer, direct[0] if direct else None, len(readers) > 1))
    return found, skipped


def empty_parameters(captured: CapturedModule) -> set[str]:
    """Names of those without elements, which have no range."""
    return {name for name, value in captured.named_parameters() if value.numel() == 0}


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Layers that multiply with node, or with a part of it."""
    for user in node.users:
        if user.target in _PASSES:
            yield from _readers(user)
        elif user.target in _MULTIPLIES and node not in (arguments(user).get("input"), arguments(user).get("bias")):
            yield user
