"""Operators that work element by element."""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.labels import Propagation, no_ids, tensors_in, varies
from lighten.graph.rules.common import Rule, overloads

aten = torch.ops.aten


def element_wise(state: Propagation, node: fx.Node) -> Any:
    """Ids that meet are united.

    An operand that is spread (broadcast) along an axis where another has different ids cannot lose its own channel:
    its ids stay, and the other's pass.
    """
    shape = state.sizes[node].shape
    operands = [ids for ids in tensors_in(fx.map_arg((node.args, node.kwargs), state.ids)) if ids.ndim]
    spread = [ids.expand(shape) for ids in operands]
    meeting = []
    for i, ids in enumerate(operands):
        others = [other for j, other in enumerate(spread) if j != i]
        axes = [axis for axis in range(len(shape)) if _is_spread(ids, axis, shape)]
        if any(varies(other, axis) for axis in axes for other in others):
            state.freeze(ids, "it is broadcast over other channels")
        else:
            meeting.append(spread[i])
    for other in meeting[1:]:
        state.unite(meeting[0], other)
    return meeting[0] if meeting else no_ids(state.sizes[node])


def same_ids(state: Propagation, node: fx.Node) -> Any:
    """One tensor in, the same shape out, element by element."""
    return state.ids(node.args[0])


def _is_spread(ids: Tensor, axis: int, shape: torch.Size) -> bool:
    own = axis - (len(shape) - ids.ndim)
    return shape[axis] > 1 and (own < 0 or ids.shape[own] == 1)


RULES: dict[Any, Rule] = {
    # Element-wise too, though torch does not tag them so.
    **dict.fromkeys([aten.hardswish.default, aten.log_sigmoid.default, aten.rsub.Tensor], element_wise),
    **dict.fromkeys(
        overloads(aten.clone, aten.contiguous, aten.detach, aten.alias, aten.to, aten._to_copy, aten.dropout,
                  aten.feature_dropout, aten.alpha_dropout), same_ids),
}  # fmt: skip
