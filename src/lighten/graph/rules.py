"""What each operator does to ids: one rule an operator family.

A rule is a function of (state, node) that returns the ids of what the node computes. Data movement has a single rule:
the real operator runs on the ids. An operator without a rule freezes all that reaches it (`not_understood`).
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lighten.graph.arguments import arguments
from lighten.graph.labels import Propagation, no_ids, tensors_in, varies

Rule = Callable[[Propagation, fx.Node], Any]
aten = torch.ops.aten


def rule_for(node: fx.Node) -> Rule:
    """The rule of the node's operator; `not_understood` where there is none."""
    if node.target in RULES:
        return RULES[node.target]
    is_pure = isinstance(node.target, OpOverload) and not node.target._schema.is_mutable
    return element_wise if is_pure and torch.Tag.pointwise in node.target.tags else not_understood  # type: ignore[union-attr]


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


def linear(state: Propagation, node: fx.Node) -> Any:
    """x [..., in], weight [out, in], bias [out]."""
    given = arguments(node)
    weight, bias = given["weight"], given["bias"]
    if not _are_parameters(weight, bias):
        return not_understood(state, node)
    made = state.fresh(state.sizes[weight].shape[0])
    state.tie(weight, 1, "input", state.along(state.ids(given["input"]), -1))
    _tie_output(state, weight, 0, bias, made)
    return made.expand(state.sizes[node].shape)


def convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [out, in / groups, …]; x may lack the batch axis."""
    given = arguments(node)
    weight, bias, groups = given["weight"], given["bias"], given["groups"]
    if not _are_parameters(weight, bias):
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
    _tie_output(state, weight, 0, bias, made)
    return _planes(made, state.sizes[node].shape, len(kernel))


def transposed_convolution(state: Propagation, node: fx.Node) -> Any:
    """x [batch, in, …], weight [in, out / groups, …]."""
    given = arguments(node)
    weight, bias = given["weight"], given["bias"]
    if not _are_parameters(weight, bias) or given["groups"] != 1:
        return not_understood(state, node)
    _, n_out, *kernel = state.sizes[weight].shape
    made = state.fresh(n_out)
    state.tie(weight, 0, "input", state.along(state.ids(given["input"]), -1 - len(kernel)))
    _tie_output(state, weight, 1, bias, made)
    return _planes(made, state.sizes[node].shape, len(kernel))


def batch_norm(state: Propagation, node: fx.Node) -> Any:
    """Weight, bias, running mean and variance [channels] ride along."""
    given = arguments(node)
    parameters = [given[name] for name in ("weight", "bias", "running_mean", "running_var") if given[name] is not None]
    if not _are_parameters(*parameters):
        return not_understood(state, node)
    channels = state.along(state.ids(given["input"]), 1)
    for parameter in parameters:
        state.tie(parameter, 0, "carried", channels)
    return state.ids(given["input"])


def embedding(state: Propagation, node: fx.Node) -> Any:
    """weight [entries, features], indices [...]: the features are channels, the entries stay."""
    weight = arguments(node)["weight"]
    if not _are_parameters(weight):
        return not_understood(state, node)
    made = state.fresh(state.sizes[weight].shape[1])
    _tie_output(state, weight, 1, None, made)
    return made.expand(state.sizes[node].shape)


def element_wise(state: Propagation, node: fx.Node) -> Any:
    """Ids that meet are united.

    An operand that is spread (broadcast) along an axis where another has different ids cannot lose its own channel:
    its ids stay, and the other's pass.
    """
    shape = state.sizes[node].shape
    operands = [ids for ids in tensors_in(fx.map_arg((node.args, node.kwargs), state.ids)) if ids.ndim]
    spread = [ids.expand(shape) for ids in operands]
    meeting = []
    for i, ids in enumerate(operands):
        others = [other for j, other in enumerate(spread) if j != i]
        axes = [axis for axis in range(len(shape)) if _is_spread(ids, axis, shape)]
        if any(varies(other, axis) for axis in axes for other in others):
            state.freeze(ids, "it is broadcast over other channels")
        else:
            meeting.append(spread[i])
    for other in meeting[1:]:
        state.unite(meeting[0], other)
    return meeting[0] if meeting else no_ids(state.sizes[node])


def same_ids(state: Propagation, node: fx.Node) -> Any:
    """One tensor in, the same shape out, element by element."""
    return state.ids(node.args[0])


def movement(state: Propagation, node: fx.Node) -> Any:
    """The real operator runs on the ids."""
    args: Any = fx.map_arg(node.args, state.ids)
    if node.target in (aten.view.default, aten._unsafe_view.default):
        return torch.reshape(*args)  # a view of the activation; ids that are merely repeated have other strides
    assert callable(node.target)
    return node.target(*args, **node.kwargs)


def over_planes(state: Propagation, node: fx.Node) -> Any:
    """Pooling and resizing: every channel keeps its id, whatever happens inside its plane."""
    size, ids = state.sizes[node], state.ids(node.args[0])
    if not isinstance(size, Tensor) or size.ndim != ids.ndim:
        return not_understood(state, node)
    spatial = int(str(node.target).split(".")[1][-2])  # the operators end in 1d, 2d, 3d
    return _planes(state.along(ids, -1 - spatial), size.shape, spatial)


def reduction(state: Propagation, node: fx.Node) -> Any:
    """Mean, sum, …: channels that are reduced over stay; the others keep their ids."""
    given = arguments(node)
    ids, axes = state.ids(given["self"]), given.get("dim")
    axes = list(range(ids.ndim)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % ids.ndim for axis in axes})
    if any(varies(ids, axis) for axis in axes):
        return not_understood(state, node)
    for axis in reversed(axes):
        ids = ids.narrow(axis, 0, 1) if given.get("keepdim") else ids.select(axis, 0)
    return ids


def softmax(state: Propagation, node: fx.Node) -> Any:
    """Along an axis of channels they compete, so they stay; along any other they pass."""
    given = arguments(node)
    ids = state.ids(given["self"])
    return not_understood(state, node) if varies(ids, given["dim"]) else ids


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


def _are_parameters(*nodes: Any) -> bool:
    return all(node is None or (isinstance(node, fx.Node) and node.op == "get_attr") for node in nodes)


def _tie_output(state: Propagation, weight: fx.Node, axis: int, bias: fx.Node | None, made: Tensor) -> None:
    state.tie(weight, axis, "output", made)
    if bias is not None:
        state.tie(bias, 0, "carried", made)


def _planes(channels: Tensor, shape: torch.Size, spatial: int) -> Tensor:
    """channels [n] spread over the planes of an activation [..., n, *spatial axes] of that shape."""
    return channels.view([-1] + [1] * spatial).expand(shape)


def _is_spread(ids: Tensor, axis: int, shape: torch.Size) -> bool:
    own = axis - (len(shape) - ids.ndim)
    return shape[axis] > 1 and (own < 0 or ids.shape[own] == 1)


def _overloads(*packets: Any) -> list[OpOverload]:
    return [getattr(packet, name) for packet in packets for name in packet.overloads()]


RULES: dict[Any, Rule] = {
    # Element-wise too, though torch does not tag them so.
    **dict.fromkeys([aten.hardswish.default, aten.log_sigmoid.default, aten.rsub.Tensor], element_wise),
    **dict.fromkeys(
        _overloads(aten.clone, aten.contiguous, aten.detach, aten.alias, aten.to, aten._to_copy, aten.dropout,
                   aten.feature_dropout, aten.alpha_dropout), same_ids),
    **dict.fromkeys(
        _overloads(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.permute,
                   aten.transpose, aten.t, aten.numpy_T, aten.movedim, aten.unsqueeze, aten.squeeze, aten.expand,
                   aten.expand_as, aten.view_as, aten.cat, aten.concat, aten.stack, aten.split, aten.chunk,
                   aten.split_with_sizes, aten.unbind, aten.slice, aten.select, aten.narrow, aten.flip,
                   aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.repeat), movement),
    operator.getitem: movement,
    **dict.fromkeys(_overloads(aten.linear), linear),
    **dict.fromkeys(_overloads(aten.conv1d, aten.conv2d, aten.conv3d), convolution),
    **dict.fromkeys(_overloads(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
                    transposed_convolution),
    **dict.fromkeys(_overloads(aten.batch_norm), batch_norm),
    **dict.fromkeys(_overloads(aten.embedding), embedding),
    **dict.fromkeys(
        _overloads(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d,
                   aten.avg_pool3d, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
                   aten.adaptive_max_pool2d, aten.upsample_nearest1d, aten.upsample_nearest2d,
                   aten.upsample_bilinear2d, aten.upsample_bicubic2d), over_planes),
    **dict.fromkeys([aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default, aten.amax.default,
                     aten.amin.default], reduction),
    **dict.fromkeys(_overloads(aten.softmax, aten.log_softmax), softmax),
    **dict.fromkeys([aten.constant_pad_nd.default, aten.pad.default], pad),
    **dict.fromkeys(_overloads(aten.sym_size), lambda state, node: state.sizes[node]),
}  # fmt: skip
