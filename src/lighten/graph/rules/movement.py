"""Data movement: the real operator runs on the ids."""

import operator
from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation, varies
from lighten.graph.rules.common import Rule, overloads

aten = torch.ops.aten


def movement(state: Propagation, node: fx.Node) -> Any:
    """The real operator runs on the ids."""
    args: Any = fx.map_arg(node.args, state.ids)
    if node.target in (aten.view.default, aten._unsafe_view.default):
        return torch.reshape(*args)  # a view of the activation; ids that are merely repeated have other strides
    assert callable(node.target)
    return node.target(*args, **node.kwargs)


def pad(state: Propagation, node: fx.Node) -> Any:
    """Padding inside a channel's plane belongs to the channel; padding that adds channels stays (id 0)."""
    given = arguments(node)
    ids, amounts, shape = state.ids(given["self"]), given["pad"], state.sizes[node].shape
    for i in range(len(amounts) // 2):
        axis = ids.ndim - 1 - i
        if varies(ids, axis):
            ids = torch.constant_pad_nd(ids, [0, 0] * i + list(amounts[2 * i : 2 * i + 2]), 0)
        else:
            ids = ids.narrow(axis, 0, 1).expand([*ids.shape[:axis], shape[axis], *ids.shape[axis + 1 :]])
    return ids


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        overloads(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.permute,
                  aten.transpose, aten.t, aten.numpy_T, aten.movedim, aten.unsqueeze, aten.squeeze, aten.expand,
                  aten.expand_as, aten.view_as, aten.cat, aten.concat, aten.stack, aten.split, aten.chunk,
                  aten.split_with_sizes, aten.unbind, aten.slice, aten.select, aten.narrow, aten.flip,
                  aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.repeat), movement),
    operator.getitem: movement,
    **dict.fromkeys([aten.constant_pad_nd.default, aten.pad.default], pad),
}  # fmt: skip
