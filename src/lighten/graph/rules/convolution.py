"""Convolutions: plain, grouped, depthwise, transposed; in one, two or three dimensions."""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation
from lighten.graph.rules.common import Rule, are_parameters, not_understood, overloads, planes, tie_output

aten = torch.ops.aten


def convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [out, in / groups, …]; x may lack the batch axis."""
    given = arguments(node)
    weight, bias, groups = given["weight"], given["bias"], given["groups"]
    if not are_parameters(weight, bias):
        return not_understood(state, node)
    n_out, n_in_group, *kernel = state.sizes[weight].shape
    read = state.along(state.ids(given["input"]), -1 - len(kernel))
    if groups > 1 and n_in_group == 1:
        made = read.repeat_interleave(n_out // groups)  # depthwise: an output goes with the input it is made from
    else:
        made = state.fresh(n_out)
        # Groups stay equal in size, so the same places go from each: their ids are united across the groups.
        state.unite(read.view(groups, -1), read.view(groups, -1)[:1])
        state.unite(made.view(groups, -1), made.view(groups, -1)[:1])
        state.tie(weight, 1, "input", read[:n_in_group])
    tie_output(state, weight, 0, bias, made)
    return planes(made, state.sizes[node].shape, len(kernel))


def transposed_convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [in, out / groups, …]."""
    given = arguments(node)
    weight, bias = given["weight"], given["bias"]
    if not are_parameters(weight, bias) or given["groups"] != 1:
        return not_understood(state, node)
    _, n_out, *kernel = state.sizes[weight].shape
    made = state.fresh(n_out)
    state.tie(weight, 0, "input", state.along(state.ids(given["input"]), -1 - len(kernel)))
    tie_output(state, weight, 1, bias, made)
    return planes(made, state.sizes[node].shape, len(kernel))


RULES: dict[Any, Rule] = {
    **dict.fromkeys(overloads(aten.conv1d, aten.conv2d, aten.conv3d), convolution),
    **dict.fromkeys(
        overloads(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), transposed_convolution
    ),
}
