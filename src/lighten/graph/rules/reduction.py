"""Operators that run along an axis: sums, means, softmax."""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation, varies
from lighten.graph.rules.common import Rule, not_understood, overloads

aten = torch.ops.aten


def reduction(state: Propagation, node: fx.Node) -> Any:
    """Mean, sum, …: channels that are reduced over stay; the others keep their ids."""
    given = arguments(node)
    ids, axes = state.ids(given["self"]), given.get("dim")
    axes = list(range(ids.ndim)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % ids.ndim for axis in axes})
    if any(varies(ids, axis) for axis in axes):
        return not_understood(state, node)
    for axis in reversed(axes):
        ids = ids.narrow(axis, 0, 1) if given.get("keepdim") else ids.select(axis, 0)
    return ids


def softmax(state: Propagation, node: fx.Node) -> Any:
    """Along an axis of channels they compete, so they stay; along any other they pass."""
    given = arguments(node)
    ids = state.ids(given["self"])
    return not_understood(state, node) if varies(ids, given["dim"]) else ids


RULES: dict[Any, Rule] = {
    **dict.fromkeys([aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default, aten.amax.default,
                     aten.amin.default], reduction),
    **dict.fromkeys(overloads(aten.softmax, aten.log_softmax), softmax),
}  # fmt: skip
