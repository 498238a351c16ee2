"""Which part of a split channel axis is the attention heads: the one over which a product of activations is a batch.

`view(batch, length, heads, head_dim)` says nothing about which axis is which, and fused projections add a third. What
the axes are shows where two activations are multiplied: heads are a batch axis there; the dimensions of a head are
summed over (queries, keys) or passed on (values).
"""

from torch import Tensor, fx

from lighten.graph.ids import spread, tensors_in
from lighten.graph.state import Propagation

# How many operators after the split are looked at. Rotary embeddings and norms take about thirty.
HORIZON = 150


class _Scratch(Propagation):
    """Follows ids without uniting them with anything: the question is only where they come to."""

    def unite(self, left: Tensor, right: Tensor) -> None:
        pass

    def freeze(self, ids: Tensor, reason: str) -> None:
        pass


def head_axis(state: Propagation, node: fx.Node, axes: list[int]) -> int | None:
    """The axis of node's result that holds attention heads, None if there are none."""
    return next((axis for axis in axes if role_of(state, node, axis) == "batch"), None)


def head_dim_axis(state: Propagation, node: fx.Node, axes: list[int]) -> int | None:
    """The axis of node's result that holds the dimensions of a head, None if there are no heads."""
    if head_axis(state, node, axes) is None:
        return None
    return next((axis for axis in axes if role_of(state, node, axis) in ("summed", "passed")), None)


def role_of(state: Propagation, node: fx.Node, axis: int) -> str | None:
    """What the first product of two activations does with the axis: "batch", "summed" or "passed"; None without one.

    The rules themselves say it: they run on ids along that axis alone, in a scratch state.
    """
    from lighten.graph.rules import rule_for

    shape = state.sizes[node].shape
    scratch = _Scratch(state.captured, state.shapes)
    own = scratch.fresh(shape[axis])
    scratch.values[node] = spread(own, axis, shape)
    last, later = int(own.max()), node.next
    for _ in range(HORIZON):
        if later.op == "output":
            return None
        if later.op == "call_function" and any(read in scratch.values for read in later.all_input_nodes):
            made = rule_for(later)(scratch, later)
            if scratch.met:
                return scratch.met[0][1]
            if any(bool(ids.any()) and int(ids.max()) <= last for ids in tensors_in(made)):
                scratch.values[later] = made
        later = later.next
    return None
