"""Operators that work element by element."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.graph.arguments import arguments
from lighten.graph.ids import no_ids, varies, varying_axes
from lighten.graph.rules.common import Rule, line_of, named, not_understood
from lighten.graph.state import Propagation

aten = torch.ops.aten


def element_wise(state: Propagation, node: fx.Node) -> Any:
    """Ids that meet are united.

    An operand that is spread (broadcast) along an axis where another has different ids cannot lose its own channel:
    its ids stay, and the other's pass. Free operands (parameters, constants) take the ids of the others.
    """
    if not isinstance(state.sizes[node], Tensor):
        return not_understood(state, node)
    shape = state.sizes[node].shape
    read = [n for n in node.all_input_nodes if isinstance(state.sizes[n], Tensor) and state.sizes[n].ndim]
    if node in state.shapes.free:
        return _all_free(state, read, shape)
    bound = [n for n in read if n not in state.shapes.free]
    operands = [state.ids(n) for n in bound]
    wide = [ids.expand(shape) for ids in operands]
    meeting: list[Tensor] = []
    counted = []
    for i, ids in enumerate(operands):
        others = [other for j, other in enumerate(wide) if j != i]
        axes = [axis for axis in range(len(shape)) if _is_spread(ids, axis, shape)]
        if any(varies(other, axis) for axis in axes for other in others):
            state.freeze(ids, "it is broadcast over other channels")
        else:
            meeting.append(wide[i])
            counted.append(bound[i])
    for other in meeting[1:]:
        state.unite(meeting[0], other)
    result = meeting[0] if meeting else no_ids(state.sizes[node])
    for free in (n for n in read if n in state.shapes.free):
        counted.append(free)
        axes = varying_axes(state.current(state.ids(free).expand(shape)))
        if axes and not varying_axes(result) and all(_is_spread(ids, axis, shape) for ids in operands for axis in axes):
            result = state.ids(free).expand(shape)  # a bias for each head, added to a mask that all heads share
        else:
            take_ids(state, state.ids(free), result)
    if _zero_stays_zero(state, node, counted):
        state.zeros.add(node)
    return result


def take_ids(state: Propagation, free: Tensor, ids: Tensor) -> None:
    """Free ids (of a parameter, a constant) take those of the activation they meet; shapes broadcast."""
    if not free.any():
        if free.ndim and any(free.shape[i - ids.ndim] > 1 for i in varying_axes(ids) if ids.ndim - i <= free.ndim):
            state.freeze(ids, "it meets a constant of fixed size")
        return
    axes = varying_axes(ids)
    if not axes:
        state.freeze(free, "it meets channels that stay")
        if ids.any():  # one unit all over
            state.freeze(ids, "it meets channels that stay")
        return
    axis = axes[0] - ids.ndim
    if -axis > free.ndim or free.shape[axis] != ids.shape[axis]:
        state.freeze(free, "it is broadcast over other channels")
        return
    state.unite(state.along(free, axis % free.ndim), line_of(ids, axis))


def _all_free(state: Propagation, read: list[fx.Node], shape: torch.Size) -> Tensor:
    """Ids of parameters and constants alone: nothing says yet which of their axes will lose something."""
    ids = [wide for n in read if (wide := state.ids(n).expand(shape)).any()]
    if not ids:
        return torch.zeros((), dtype=torch.int64).expand(shape)
    first: Tensor = ids[0]
    for other in ids[1:]:
        state.unite(first, other)
    fixed = [n for n in read if not state.ids(n).any()]
    for n in fixed:  # what is counted, not stored (arange, a mask), holds along the axes that it has
        own = state.sizes[n].shape
        for axis in range(1, len(own) + 1):
            if own[-axis] > 1 and varies(first, len(shape) - axis):
                state.freeze(first, "it meets a constant of fixed size")
    return first


def _zero_stays_zero(state: Propagation, node: fx.Node, counted: list[fx.Node]) -> bool:
    """True if the operator gives 0 where those of counted that can lose channels are 0: it is tried."""
    # A free operand may just have been frozen; then it is not zeroed.
    zeroed = [n for n in counted if state.is_zero(n) and bool(state.current(state.ids(n)).any())]
    if not zeroed:
        return False

    def sample(n: fx.Node) -> Any:
        def one(meta: Tensor) -> Tensor:
            return torch.tensor([0.0] * 4 if n in zeroed else [0.25, -1.5, 2.0, 0.75]).to(meta.dtype)

        return tree_map_only(Tensor, one, state.sizes[n])

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), sample)
    assert callable(node.target)
    try:
        result = node.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):  # the sample does not fit; then nothing is promised
        return False
    return isinstance(result, Tensor) and not bool(result.any())


def same_ids(state: Propagation, node: fx.Node) -> Any:
    """One tensor in, the same shape out, element by element."""
    source = node.args[0]
    if state.is_zero(source):
        state.zeros.add(node)
    return state.ids(source)


def filled_like(state: Propagation, node: fx.Node) -> Any:
    """zeros_like and its kin: a constant in the shape of another tensor."""
    if node.target == aten.zeros_like.default:
        state.zeros.add(node)
    return state.ids(node.args[0])


def constant(state: Propagation, node: fx.Node) -> Any:
    """zeros, ones, full: the same at any size, so it takes the size that its readers want."""
    shape = state.sizes[node].shape
    if "zeros" in str(node.target):
        state.zeros.add(node)
    count = shape.numel()
    return state.fresh(*shape) if 1 < count <= 1 << 20 else no_ids(state.sizes[node])


def prelu(state: Propagation, node: fx.Node) -> Any:
    """A slope for each channel rides along; a single one does not matter."""
    given = arguments(node)
    weight = given["weight"]
    if weight.op != "get_attr":
        return not_understood(state, node)
    ids = state.current(state.regular_ids(given["self"]))
    if state.sizes[weight].numel() > 1:
        state.tie(weight, 0, "carried", line_of(ids, 1))
    if state.is_zero(given["self"]):
        state.zeros.add(node)
    return ids


def glu(state: Propagation, node: fx.Node) -> Any:
    """The first half of an axis times the sigmoid of the second: the halves go together."""
    given = arguments(node)
    first, second = state.ids(given["self"]).chunk(2, given["dim"])
    state.unite(first, second)
    if state.is_zero(given["self"]):
        state.zeros.add(node)
    return first


def _is_spread(ids: Tensor, axis: int, shape: torch.Size) -> bool:
    own = axis - (len(shape) - ids.ndim)
    return shape[axis] > 1 and (own < 0 or ids.shape[own] == 1)


RULES: dict[Any, Rule] = {
    # Element-wise too, though torch does not tag them so.
    **dict.fromkeys(
        [aten.hardswish.default, aten.log_sigmoid.default, aten.rsub.Tensor, aten.masked_fill.Tensor,
         aten.__and__.Tensor, aten.__or__.Tensor, aten.floor_divide.default, aten.where.ScalarOther,
         aten.where.ScalarSelf, aten.special_erf.default], element_wise),
    **dict.fromkeys(
        named("clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "dropout", "feature_dropout",
              "alpha_dropout", "lift_fresh_copy"), same_ids),
    **dict.fromkeys(named("zeros_like", "ones_like", "full_like"), filled_like),
    **dict.fromkeys(
        named("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), constant),
    **dict.fromkeys(named("prelu"), prelu),
    **dict.fromkeys(named("glu"), glu),
}  # fmt: skip
