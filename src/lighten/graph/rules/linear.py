"""Linear layers and embeddings."""

from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.rules.common import Rule, computed_weight, named, not_understood, tie_output
from lighten.graph.rules.contraction import LETTERS, Operand, add_bias, contract
from lighten.graph.rules.weights import weight_view
from lighten.graph.state import Propagation


def linear(state: Propagation, node: fx.Node) -> Any:
    """x [..., in], weight [out, in], bias [out]."""
    given = arguments(node)
    if given["weight"] in state.shapes.free and weight_view(state, given["weight"]) is None:
        return computed_weight(state, node, given["weight"])
    n_axes = state.sizes[given["input"]].ndim
    before, n_out = LETTERS[: n_axes - 1], state.sizes[given["weight"]].ndim - 1
    made = "z" * n_out  # a weight [in] makes a number
    ids = contract(
        state, node, [Operand(given["input"], before + "y"), Operand(given["weight"], made + "y")], before + made
    )
    return add_bias(state, node, given["bias"], ids)


def embedding(state: Propagation, node: fx.Node) -> Any:
    """weight [entries, features], indices [...]: the features are channels, the entries stay."""
    given = arguments(node)
    weight = given["weight"]
    if weight.op != "get_attr":
        return not_understood(state, node)
    state.freeze(state.ids(given["indices"]), "it is an index")
    entries, features = state.sizes[weight].shape
    made = state.fresh(features)
    state.tie(weight, 0, "input", torch.zeros(entries, dtype=torch.int64))
    tie_output(state, weight, 1, None, made)
    state.zeros.add(node)
    return made.expand(state.sizes[node].shape)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(named("linear"), linear),
    **dict.fromkeys(named("embedding"), embedding),
}
