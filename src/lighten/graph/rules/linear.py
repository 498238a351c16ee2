"""Linear layers and embeddings."""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation
from lighten.graph.rules.common import Rule, are_parameters, not_understood, overloads, tie_output

aten = torch.ops.aten


def linear(state: Propagation, node: fx.Node) -> Any:
    """x [..., in], weight [out, in], bias [out]."""
    given = arguments(node)
    weight, bias = given["weight"], given["bias"]
    if not are_parameters(weight, bias):
        return not_understood(state, node)
    made = state.fresh(state.sizes[weight].shape[0])
    state.tie(weight, 1, "input", state.along(state.ids(given["input"]), -1))
    tie_output(state, weight, 0, bias, made)
    return made.expand(state.sizes[node].shape)


def embedding(state: Propagation, node: fx.Node) -> Any:
    """weight [entries, features], indices [...]: the features are channels, the entries stay."""
    weight = arguments(node)["weight"]
    if not are_parameters(weight):
        return not_understood(state, node)
    made = state.fresh(state.sizes[weight].shape[1])
    tie_output(state, weight, 1, None, made)
    return made.expand(state.sizes[node].shape)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(overloads(aten.linear), linear),
    **dict.fromkeys(overloads(aten.embedding), embedding),
}
