"""Data movement: the real operator runs on the ids."""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.graph.arguments import arguments
from lighten.graph.ids import compacted, no_ids, spread, tensors_in, varies, varying_axes
from lighten.graph.rules.common import Rule, line_of, named, not_understood
from lighten.graph.rules.weights import is_only_a_weight
from lighten.graph.state import Propagation

aten = torch.ops.aten


def movement(state: Propagation, node: fx.Node) -> Any:
    """The real operator runs on the ids."""
    if is_only_a_weight(node):
        return None  # a transposed weight: the product that reads it looks through to the parameter
    if node not in state.shapes.free:
        _free_follow(state, node)
    keep_zero(state, node)
    args: Any = fx.map_arg(node.args, state.ids)
    if node.target in (aten.view.default, aten._unsafe_view.default):
        return torch.reshape(*args)  # a view of the activation; ids that are merely repeated have other strides
    assert callable(node.target)
    return tree_map_only(Tensor, compacted, node.target(*args, **node.kwargs))


def keep_zero(state: Propagation, node: fx.Node) -> None:
    """What moves zeros moves zeros."""
    if all(state.is_zero(n) for n in node.all_input_nodes if any(bool(ids.any()) for ids in tensors_in(state.ids(n)))):
        state.zeros.add(node)


def _free_follow(state: Propagation, node: fx.Node) -> None:
    """Where a free tensor (a class token) joins an activation, it takes its ids along the other axes."""
    read = node.all_input_nodes
    free = [n for n in read if n in state.shapes.free and tensors_in(state.sizes[n])]
    bound = [n for n in read if n not in state.shapes.free and isinstance(state.sizes[n], Tensor)]
    axes = {axis for n in bound for axis in varying_axes(state.ids(n))}
    for n in free:
        ids = state.ids(n)
        if bound and isinstance(ids, Tensor) and ids.any():
            if len(axes) == 1 and ids.ndim == state.ids(bound[0]).ndim:
                state.along(ids, next(iter(axes)))
            else:
                state.freeze(ids, "it is joined to channels that stay")


def joined(state: Propagation, node: fx.Node) -> Any:
    """cat, on one index of the axes that all parts repeat."""
    if node not in state.shapes.free:
        _free_follow(state, node)
    keep_zero(state, node)
    given = arguments(node)
    parts = [state.ids(part) for part in given["tensors"]]
    if len({part.ndim for part in parts}) > 1:
        return not_understood(state, node)
    shape, dim = state.sizes[node].shape, given["dim"] % state.sizes[node].ndim
    for axis in range(len(shape)):
        if axis != dim and all(part.stride(axis) == 0 for part in parts):
            parts = [part.narrow(axis, 0, 1) for part in parts]
    return compacted(torch.cat(parts, dim).expand(shape))


def sliced(state: Propagation, node: fx.Node) -> Any:
    """A step that is not 1 takes every n-th channel, which holds only while whole runs of n go together."""
    if is_only_a_weight(node):
        return None
    given = arguments(node)
    ids, step = state.ids(given["self"]), given["step"]
    if step != 1 and varies(ids, given["dim"]):
        line = line_of(state.current(state.regular_ids(given["self"])), given["dim"])
        state.blocks.append((line, step, f"every {step}th of its channels is taken"))
        ids = state.ids(given["self"])
    keep_zero(state, node)
    return compacted(node.target(ids, *node.args[1:], **node.kwargs))  # type: ignore[operator]


def expanded(state: Propagation, node: fx.Node) -> Any:
    """An axis that is made by repeating one value is as long as its readers want."""
    if state.is_zero(node.args[0]):
        state.zeros.add(node)
    if len(node.args) == 2 and isinstance(node.args[1], fx.Node):  # expand_as
        source, like = state.ids(node.args[0]), state.ids(node.args[1])
        if source.any() or node in state.shapes.free:
            return source.expand(like.shape)
        own = state.sizes[node.args[0]].shape  # type: ignore[index]
        offset = like.ndim - len(own)
        axes = [axis for axis in varying_axes(like) if axis < offset or own[axis - offset] == 1]
        return spread(line_of(like, axes[0]), axes[0], like.shape) if axes else source.expand(like.shape)
    ids, shape, sizes = state.ids(node.args[0]), state.sizes[node].shape, arguments(node)["size"]
    offset = len(shape) - ids.ndim
    wide = [
        axis for axis in range(len(shape))
        if shape[axis] > 1 and isinstance(sizes[axis], int) and (axis < offset or ids.shape[axis - offset] == 1)
    ]  # fmt: skip
    if ids.any() or len(wide) != 1 or not state.sizes[node].is_floating_point():  # a mask belongs to no channel
        return ids.expand(shape)
    return spread(state.fresh(shape[wide[0]]), wide[0], shape)


def rolled(state: Propagation, node: fx.Node) -> Any:
    """Rolling along the channels only permutes them."""
    keep_zero(state, node)
    given = arguments(node)
    if not given["dims"]:  # all axes as one
        return not_understood(state, node)
    ids = state.ids(given["self"])
    for shift, dim in zip(given["shifts"], given["dims"], strict=True):
        if varies(ids, dim):
            ids = torch.roll(ids, shift, dim)
    return ids


def shuffled(state: Propagation, node: fx.Node) -> Any:
    """channel_shuffle(groups): groups stay equal in size."""
    given = arguments(node)
    ids = state.current(state.regular_ids(given["self"]))
    if varies(ids, 1):
        parts = line_of(ids, 1).view(given["groups"], -1)
        state.unite(parts, parts[:1])
    keep_zero(state, node)
    return aten.channel_shuffle(ids, given["groups"])


def indexed(state: Propagation, node: fx.Node) -> Any:
    """x[..., index, ...]: constant indices move ids; computed ones may pick among what is alike only."""
    given = arguments(node)
    indices = given.get("indices") or [None] * (given["dim"] % state.sizes[node].ndim) + [given["index"]]
    data = [state.shapes.data.get(i) if isinstance(i, fx.Node) else None for i in indices]
    computed = [axis for axis, i in enumerate(indices) if i is not None and data[axis] is None]
    source = given["self"]
    ids = state.ids(source)
    if source not in state.shapes.free or computed:
        ids = state.regular_ids(source)
    if any(i is not None and state.ids(i).any() for i in indices if i is not None):
        return not_understood(state, node)
    if any(varies(ids, axis) for axis in computed):
        state.freeze(ids, "computed indices pick among its channels")
        return no_ids(state.sizes[node])
    keep_zero(state, node)
    picked: list[Any] = [
        None if i is None else data[axis] if data[axis] is not None else _first_of(state, i)
        for axis, i in enumerate(indices)
    ]
    over_channels = any(i is not None and varies(ids, axis) for axis, i in enumerate(indices))
    if over_channels and source not in state.shapes.free and sum(i is not None for i in indices) > 1:
        state.freeze(ids, "several indices pick among its channels at once")
        return no_ids(state.sizes[node])
    by_tensor = "indices" in given
    moved = aten.index.Tensor(ids, picked) if by_tensor else torch.index_select(ids, given["dim"], picked[-1])
    return compacted(moved) if moved.shape == state.sizes[node].shape else not_understood(state, node)


def _first_of(state: Propagation, index: fx.Node) -> Tensor:
    size = state.sizes[index]
    return torch.zeros(size.shape, dtype=torch.int64)


def gathered(state: Propagation, node: fx.Node) -> Any:
    """gather along an axis without ids; the index has the shape of the result, so ids along other axes stay."""
    ids = state.regular_ids(arguments(node)["self"])
    if varying_axes(state.current(ids)):
        return not_understood(state, node)
    return no_ids(state.sizes[node])


def pad(state: Propagation, node: fx.Node) -> Any:
    """Padding inside a channel's plane belongs to the channel; padding that adds channels stays (id 0)."""
    given = arguments(node)
    ids, amounts, shape = state.ids(given["self"]), given["pad"], state.sizes[node].shape
    if state.is_zero(given["self"]) and not (given.get("value") and given.get("mode", "constant") == "constant"):
        state.zeros.add(node)
    for i in range(len(amounts) // 2):
        axis = ids.ndim - 1 - i
        if varies(ids, axis):
            if given.get("mode", "constant") != "constant":
                return not_understood(state, node)
            ids = torch.constant_pad_nd(ids, [0, 0] * i + list(amounts[2 * i : 2 * i + 2]), 0)
        elif ids.shape[axis] != shape[axis]:
            ids = ids.narrow(axis, 0, 1).expand([*ids.shape[:axis], shape[axis], *ids.shape[axis + 1 :]])
    return ids


MOVES = named(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "numpy_T", "movedim",
    "swapaxes", "unsqueeze", "squeeze", "view_as", "reshape_as", "stack", "split", "chunk", "split_with_sizes",
    "unbind", "select", "narrow", "flip", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "tile",
    "unfold", "diagonal", "mT", "mH", "matrix_H", "adjoint", "swapdims", "moveaxis", "ravel", "rot90", "fliplr",
    "flipud", "hstack", "vstack", "dstack", "column_stack", "tensor_split", "unsafe_chunk", "unsafe_split",
    "unsafe_split_with_sizes",
)  # fmt: skip
RULES: dict[Any, Rule] = {
    **dict.fromkeys(MOVES, movement),
    **dict.fromkeys(named("cat", "concat", "concatenate"), joined),
    **dict.fromkeys(named("slice"), sliced),
    **dict.fromkeys(named("expand", "expand_as", "broadcast_to"), expanded),
    **dict.fromkeys(named("roll"), rolled),
    **dict.fromkeys(named("channel_shuffle"), shuffled),
    **dict.fromkeys([aten.index.Tensor, aten.index_select.default], indexed),
    **dict.fromkeys(named("gather", "take_along_dim"), gathered),
    operator.getitem: movement,
    **dict.fromkeys([aten.constant_pad_nd.default, aten.pad.default], pad),
}
