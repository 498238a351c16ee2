"""Normalizations: what they carry, and where their statistics bind channels together."""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation
from lighten.graph.rules.common import Rule, are_parameters, not_understood, overloads

aten = torch.ops.aten


def batch_norm(state: Propagation, node: fx.Node) -> Any:
    """Weight, bias, running mean and variance [channels] ride along."""
    given = arguments(node)
    parameters = [given[name] for name in ("weight", "bias", "running_mean", "running_var") if given[name] is not None]
    if not are_parameters(*parameters):
        return not_understood(state, node)
    channels = state.along(state.ids(given["input"]), 1)
    for parameter in parameters:
        state.tie(parameter, 0, "carried", channels)
    return state.ids(given["input"])


RULES: dict[Any, Rule] = {
    **dict.fromkeys(overloads(aten.batch_norm), batch_norm),
}
