"""Normalizations: what they carry, and where their statistics bind channels together.

Batch and instance norm treat every channel by itself and carry it. Group norm takes its statistics over the channels of
a group, so a group goes as a whole. Layer and RMS norm take theirs over all channels: to remove one changes the others,
which is not what zeroing it does, so they stay.
"""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.ids import no_ids, spread, varying_axes
from lighten.graph.rules.common import Rule, are_parameters, line_of, named, not_understood, other_axis
from lighten.graph.state import Propagation

aten = torch.ops.aten


def channel_norm(state: Propagation, node: fx.Node) -> Any:
    """Batch and instance norm: weight, bias, running mean and variance [channels] ride along."""
    given = arguments(node)
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = [given[name] for name in names if given.get(name) is not None]
    if not are_parameters(*parameters):
        return not_understood(state, node)
    ids = state.current(state.regular_ids(given["input"]))
    if other_axis(ids, 1) is not None:
        state.freeze(ids, "batch statistics are taken along its channels")
        ids = no_ids(state.sizes[node])
    line = line_of(ids, 1)
    for parameter in parameters:
        state.tie(parameter, 0, "carried", line)
    if parameters or state.is_zero(given["input"]):
        state.zeros.add(node)
    return ids


def group_norm(state: Propagation, node: fx.Node) -> Any:
    """Channels [groups · n]: those of a group share their statistics, so they go together."""
    given = arguments(node)
    parameters = [given[name] for name in ("weight", "bias") if given[name] is not None]
    if not are_parameters(*parameters):
        return not_understood(state, node)
    ids = state.current(state.regular_ids(given["input"]))
    if other_axis(ids, 1) not in (None, 0):
        return not_understood(state, node)
    line = line_of(ids, 1)
    groups = line.view(given["num_groups"], -1)
    state.unite(groups, groups[:, :1])
    if line.any():
        ids = spread(groups[:, :1].expand_as(groups).reshape(-1), 1, ids.shape)
    for parameter in parameters:
        state.tie(parameter, 0, "carried", line)
    if line.any() and (parameters or state.is_zero(given["input"])):
        state.zeros.add(node)
    return ids


def layer_norm(state: Propagation, node: fx.Node) -> Any:
    """Layer and RMS norm over the last axes: ids along these stay, ids along others pass."""
    given = arguments(node)
    ids = state.current(state.regular_ids(given["input"]))
    normalized = range(ids.ndim - len(given["normalized_shape"]), ids.ndim)
    if any(axis in normalized for axis in varying_axes(ids)):
        kind = str(node.target).split(".")[1].replace("_", " ")
        state.freeze(ids, f"a {kind} takes its statistics over its channels: fewer channels, other statistics")
        return no_ids(state.sizes[node])
    return ids


RULES: dict[Any, Rule] = {
    **dict.fromkeys(named("batch_norm", "instance_norm"), channel_norm),
    **dict.fromkeys(named("group_norm"), group_norm),
    **dict.fromkeys(named("layer_norm", "rms_norm"), layer_norm),
}
