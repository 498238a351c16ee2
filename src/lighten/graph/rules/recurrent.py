"""Recurrent layers: LSTM, GRU and plain, in all layers and directions, and their single-step cells.

A hidden unit owns a row of every gate in both weights, the bias of each, its column in the recurrent weight and what
the next layer reads of it. All layers and directions keep their states in one tensor [layers · directions, batch,
hidden], so they lose the same units. A unit whose weights are 0 has state 0 as long as its first state is 0.
"""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.ids import spread
from lighten.graph.rules.common import Rule, line_of, not_understood
from lighten.graph.rules.elements import take_ids
from lighten.graph.state import Propagation

aten = torch.ops.aten
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def recurrent(state: Propagation, node: fx.Node) -> Any:
    """input [length, batch, features] or [batch, length, features]; returns (output, last states …)."""
    given = arguments(node)
    weights, n_gates = list(given["params"]), _gates(node)
    directions = 2 if given["bidirectional"] else 1
    per_layer = len(weights) // (given["num_layers"] * directions)
    hidden = state.sizes[weights[1]].shape[1]
    projects = per_layer not in (2, 4) or state.sizes[weights[0]].shape[0] != n_gates * hidden
    if projects or any(w.op != "get_attr" for w in weights):
        return not_understood(state, node)  # an LSTM with proj_size
    first = given["hx"] if isinstance(given["hx"], (list, tuple)) else [given["hx"]]
    unit = state.fresh(hidden)
    for states in first:
        _join_states(state, states, unit)
    reads = line_of(state.current(state.regular_ids(given["input"])), -1)
    if not reads.any():
        state.freeze(state.ids(given["input"]), "a recurrent layer runs along them")
    for layer in range(given["num_layers"]):
        for direction in range(directions):
            start = (layer * directions + direction) * per_layer
            _tie_cell(state, weights[start : start + per_layer], reads, unit, n_gates)
        reads = unit.repeat(directions)
    state.zeros.add(node)
    output, *last = state.sizes[node]
    return (spread(reads, output.ndim - 1, output.shape), *(spread(unit, t.ndim - 1, t.shape) for t in last))


def cell(state: Propagation, node: fx.Node) -> Any:
    """input [batch, features], hx [batch, hidden]; returns the new states."""
    given = arguments(node)
    weights = [given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if given[name] is not None]
    if any(w.op != "get_attr" for w in weights):
        return not_understood(state, node)
    first = given["hx"] if isinstance(given["hx"], (list, tuple)) else [given["hx"]]
    unit = state.fresh(state.sizes[weights[1]].shape[1])
    for states in first:
        _join_states(state, states, unit)
    reads = line_of(state.current(state.regular_ids(given["input"])), -1)
    _tie_cell(state, weights, reads, unit, _gates(node))
    state.zeros.add(node)
    size = state.sizes[node]
    if isinstance(size, Tensor):
        return spread(unit, size.ndim - 1, size.shape)
    return tuple(spread(unit, t.ndim - 1, t.shape) for t in size)


def _gates(node: fx.Node) -> int:
    return GATES[str(node.target).split(".")[1].split("_")[0]]


def _join_states(state: Propagation, first: fx.Node, unit: Tensor) -> None:
    """The first state is made of the same units; one that is not 0 for a zeroed unit binds them all."""
    if first in state.shapes.free:
        shape = state.sizes[first].shape
        take_ids(state, state.ids(first), spread(unit, len(shape) - 1, shape))
    else:
        state.unite(line_of(state.regular_ids(first), -1), unit)
    if not state.is_zero(first):
        state.freeze(unit, "its first state is given from outside")


def _tie_cell(state: Propagation, weights: list[fx.Node], reads: Tensor, unit: Tensor, n_gates: int) -> None:
    from_input, from_state, *biases = weights
    rows = unit.repeat(n_gates)
    state.tie(from_input, 1, "input", reads)
    state.tie(from_state, 1, "input", unit)
    for weight in (from_input, from_state):
        state.tie(weight, 0, "output", rows)
    for bias in biases:
        state.tie(bias, 0, "carried", rows)


RULES: dict[Any, Rule] = {
    **dict.fromkeys([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input], recurrent),
    **dict.fromkeys(
        [aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default], cell
    ),
}
