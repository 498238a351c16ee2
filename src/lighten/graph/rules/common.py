"""What the rules share: the type of a rule, freezing what is not understood, tying the parameters of a layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lighten.graph.capture import layer_of
from lighten.graph.ids import by_index, no_ids, spread, tensors_in, varying_axes
from lighten.graph.state import Propagation

Rule = Callable[[Propagation, fx.Node], Any]
aten = torch.ops.aten


def not_understood(state: Propagation, node: fx.Node) -> Any:
    """Every id that reaches the node stays."""
    return stay(state, node, f"its channels reach {node.target}, which pruning does not understand")


def stay(state: Propagation, node: fx.Node, reason: str) -> Any:
    """Every id that reaches the node stays, for that reason."""
    for ids in tensors_in(fx.map_arg((node.args, node.kwargs), state.ids)):
        state.freeze(ids, reason)
    return no_ids(state.sizes[node])


def computed_weight(state: Propagation, node: fx.Node, weight: fx.Node) -> Any:
    """A layer whose weight is made in the forward pass, by weight standardization say, is kept."""
    reason = "its weight is computed in the forward pass, and with fewer channels another one would be"
    owners = {state.names[str(n.target)].rpartition(".")[0] for n in _parameters_behind(state, weight)}
    state.kept_layers.update(dict.fromkeys(owners or {layer_of(node)}, reason))
    return stay(state, node, reason)


def _parameters_behind(state: Propagation, node: fx.Node) -> set[fx.Node]:
    """The parameters and buffers that node is computed from, if it is from these alone."""
    if node not in state.shapes.free:
        return set()
    return {node} if node.op == "get_attr" else {p for n in node.all_input_nodes for p in _parameters_behind(state, n)}


def outputs_stay(state: Propagation, node: fx.Node) -> None:
    """What leaves the model keeps its size."""
    stay(state, node, "its channels are an output of the model")


def are_parameters(*nodes: Any) -> bool:
    """True if every one of nodes is a parameter or a buffer, or None. A weight with weight norm counts as one."""
    return all(node is None or (isinstance(node, fx.Node) and _is_parameter(node)) for node in nodes)


def _is_parameter(node: fx.Node) -> bool:
    if node.target == aten._weight_norm.default:
        return all(isinstance(read, fx.Node) and read.op == "get_attr" for read in node.args[:2])
    return node.op == "get_attr"


def tie_output(state: Propagation, weight: fx.Node, axis: int, bias: fx.Node | None, made: Tensor) -> None:
    """The indices of weight along axis make the channels with these ids; bias [out] rides along."""
    state.tie(weight, axis, "output", made)
    if bias is not None:
        state.tie(bias, 0, "carried", made)


def line_of(ids: Tensor, axis: int) -> Tensor:
    """The ids [size] along axis of regular ids; zeros where that is not the axis along which things may be removed.

    A tensor that is one unit all over loses nothing: that unit stays, see `labels`.
    """
    axis %= ids.ndim
    is_axis = varying_axes(ids) == [axis]
    return by_index(ids, axis)[:, 0] if is_axis else torch.zeros(ids.shape[axis], dtype=torch.int64)


def other_axis(ids: Tensor, axis: int) -> int | None:
    """The axis of regular ids along which they vary, if that is not axis."""
    axes = [other for other in varying_axes(ids) if other != axis % ids.ndim]
    return axes[0] if axes else None


def planes(channels: Tensor, shape: torch.Size, spatial: int) -> Tensor:
    """channels [n] spread over the planes of an activation [..., n, *spatial axes] of that shape."""
    return spread(channels, len(shape) - 1 - spatial, shape)


def overloads(*packets: Any) -> list[OpOverload]:
    """Every overload of the operators."""
    return [getattr(packet, name) for packet in packets for name in packet.overloads()]


def named(*names: str) -> list[OpOverload]:
    """Every overload of the ATen operators with these names that this torch has."""
    return overloads(*(getattr(aten, name) for name in names if hasattr(aten, name)))
