"""Convolutions: plain, grouped, depthwise, transposed; in one, two or three dimensions."""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.ids import spread
from lighten.graph.rules.common import (
    Rule,
    are_parameters,
    computed_weight,
    line_of,
    named,
    other_axis,
    planes,
    tie_output,
)
from lighten.graph.state import Propagation

aten = torch.ops.aten


def convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [out, in / groups, …]; x may lack the batch axis."""
    given = arguments(node)
    weight, bias, groups = given["weight"], given["bias"], given["groups"]
    if not are_parameters(weight, bias):
        return computed_weight(state, node, weight)
    n_out, n_in_group, *kernel = state.sizes[weight].shape
    ids = state.current(state.regular_ids(given["input"]))
    passing = _passing_batch(state, node, ids, len(kernel))
    if passing is not None:
        _keep_whole(state, weight, bias)
        return passing
    read = line_of(ids, -1 - len(kernel))
    if groups > 1 and n_in_group == 1:
        made = read.repeat_interleave(n_out // groups)  # depthwise: an output goes with the input it is made from
    else:
        made = state.fresh(n_out)
        # Groups stay equal in size, so the same places go from each: their ids are united across the groups.
        state.unite(read.view(groups, -1), read.view(groups, -1)[:1])
        state.unite(made.view(groups, -1), made.view(groups, -1)[:1])
        state.tie(weight, 1, "input", read[:n_in_group])
    tie_output(state, weight, 0, bias, made)
    state.zeros.add(node)
    return planes(made, state.sizes[node].shape, len(kernel))


def transposed_convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [in, out / groups, …]."""
    given = arguments(node)
    weight, bias, groups = given["weight"], given["bias"], given["groups"]
    if not are_parameters(weight, bias):
        return computed_weight(state, node, weight)
    n_in, n_out_group, *kernel = state.sizes[weight].shape
    ids = state.current(state.regular_ids(given["input"]))
    passing = _passing_batch(state, node, ids, len(kernel))
    if passing is not None:
        _keep_whole(state, weight, bias)
        return passing
    read = line_of(ids, -1 - len(kernel))
    if groups == n_in:
        made = read.repeat_interleave(n_out_group)
        state.tie(weight, 0, "output", read)
    else:
        part = state.fresh(n_out_group)
        made = part.repeat(groups)
        state.unite(read.view(groups, -1), read.view(groups, -1)[:1])
        state.tie(weight, 0, "input", read)
        state.tie(weight, 1, "output", part)
    if bias is not None:
        state.tie(bias, 0, "carried", made)
    state.zeros.add(node)
    return planes(made, state.sizes[node].shape, len(kernel))


def _passing_batch(state: Propagation, node: fx.Node, ids: Tensor, spatial: int) -> Tensor | None:
    """The result's ids where the input's vary along the batch axis: channels that were folded into the batch pass."""
    axis = other_axis(ids, -1 - spatial)
    if axis is None:
        return None
    line = line_of(ids, axis)
    if axis == 0 and ids.ndim == spatial + 2 and (node.name, 0) not in state.avoid:
        state.choices.append((node.name, 0, line))
        return spread(line, 0, state.sizes[node].shape)
    state.freeze(line, "a convolution slides along its channels")
    return None


def _keep_whole(state: Propagation, weight: fx.Node, bias: fx.Node | None) -> None:
    for axis in (0, 1):
        role = "output" if axis == 0 else "input"
        state.tie(weight, axis, role, torch.zeros(state.sizes[weight].shape[axis], dtype=torch.int64))
    if bias is not None:
        state.tie(bias, 0, "carried", torch.zeros(state.sizes[bias].shape, dtype=torch.int64))


RULES: dict[Any, Rule] = {
    **dict.fromkeys(named("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(named("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
}
