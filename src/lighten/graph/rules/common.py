"""What the rules share: the type of a rule, freezing what is not understood, tying the parameters of a layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lighten.graph.labels import Propagation, no_ids, tensors_in

Rule = Callable[[Propagation, fx.Node], Any]


def not_understood(state: Propagation, node: fx.Node) -> Any:
    """Every id that reaches the node stays."""
    reason = f"its channels reach {node.target}, which pruning does not understand"
    for ids in tensors_in(fx.map_arg((node.args, node.kwargs), state.ids)):
        state.freeze(ids, reason)
    return no_ids(state.sizes[node])


def outputs_stay(state: Propagation, node: fx.Node) -> None:
    """What leaves the model keeps its size."""
    for ids in tensors_in(fx.map_arg(node.args, state.ids)):
        state.freeze(ids, "its channels are an output of the model")


def are_parameters(*nodes: Any) -> bool:
    """True if every one of nodes is a parameter or a buffer, or None."""
    return all(node is None or (isinstance(node, fx.Node) and node.op == "get_attr") for node in nodes)


def tie_output(state: Propagation, weight: fx.Node, axis: int, bias: fx.Node | None, made: Tensor) -> None:
    """The indices of weight along axis make the channels with these ids; bias [out] rides along."""
    state.tie(weight, axis, "output", made)
    if bias is not None:
        state.tie(bias, 0, "carried", made)


def planes(channels: Tensor, shape: torch.Size, spatial: int) -> Tensor:
    """channels [n] spread over the planes of an activation [..., n, *spatial axes] of that shape."""
    return channels.view([-1] + [1] * spatial).expand(shape)


def overloads(*packets: Any) -> list[OpOverload]:
    """Every overload of the operators."""
    return [getattr(packet, name) for packet in packets for name in packet.overloads()]
