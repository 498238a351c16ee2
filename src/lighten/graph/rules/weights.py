"""Weights that are looked at before they are used: transposed, cut in parts, or made by weight norm.

`x @ self.weight.t()`, `F.linear(x, self.in_proj_weight[:width])`, GPT-2's Conv1D: the product that reads such a weight
looks through to the parameter, so that its axes are tied as if the parameter itself stood there.
"""

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.rules.common import named
from lighten.graph.state import Propagation

aten = torch.ops.aten
TRANSPOSITIONS = {
    *named("t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *named("detach", "alias", "contiguous", "clone"),
}
CUTS = {*named("split", "split_with_sizes", "chunk", "slice"), operator.getitem}
READERS = {
    *named("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum"),
    *named("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}


@dataclass(frozen=True)
class WeightView:
    """parameter, seen through a view. axes: the parameter's axis for each of the view's. parts: for an axis of the
    parameter that is cut, the indices that are left."""

    parameter: fx.Node
    axes: tuple[int, ...]
    parts: dict[int, slice]


def is_only_a_weight(node: fx.Node) -> bool:
    """True for a parameter, transposed, cut or with weight norm, that nothing but products and layers read."""
    if node.target == aten._weight_norm.default:
        is_view = all(isinstance(read, fx.Node) and read.op == "get_attr" for read in node.args[:2])
    else:
        source = node.args[0] if node.target in TRANSPOSITIONS | CUTS else None
        is_view = isinstance(source, fx.Node) and (source.op == "get_attr" or _may_be_view(source))
    return is_view and all(user.target in READERS or is_only_a_weight(user) for user in node.users)


def _may_be_view(node: fx.Node) -> bool:
    """is_only_a_weight, looking up the graph only: the way down was looked at from there."""
    source = node.args[0] if node.target in TRANSPOSITIONS | CUTS else None
    return isinstance(source, fx.Node) and (source.op == "get_attr" or _may_be_view(source))


def weight_view(state: Propagation, node: fx.Node) -> WeightView | None:
    """The parameter or buffer that node is or looks at, None if it is an activation."""
    if node.op == "get_attr":
        tensor = state.sizes[node]
        is_weight = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim > 0
        return WeightView(node, tuple(range(tensor.ndim)), {}) if is_weight else None
    if not is_only_a_weight(node):
        return None
    if node.target == aten._weight_norm.default:
        return WeightView(node, tuple(range(state.sizes[node].ndim)), {})
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.target == operator.getitem:
        return _one_part(state, source, int(str(node.args[1])))
    behind = weight_view(state, source)
    if behind is None:
        return None
    if node.target in TRANSPOSITIONS:
        return replace(behind, axes=_transposed(node, behind.axes))
    given = arguments(node)
    return _cut(state, node, behind, given["dim"], slice(given["start"], given["end"], given["step"]))


def tie_view(state: Propagation, view: WeightView, axis: int, role: str, ids: Tensor) -> None:
    """Tie the view's axis to ids."""
    own = view.axes[axis]
    state.tie(view.parameter, own, role, ids, view.parts.get(own))


def _one_part(state: Propagation, split: fx.Node, index: int) -> WeightView | None:
    behind = weight_view(state, split.args[0])  # type: ignore[arg-type]
    if behind is None or split.target == aten.slice.Tensor or not isinstance(state.sizes[split], (list, tuple)):
        return None
    dim = arguments(split)["dim"]
    sizes = [part.shape[dim] for part in state.sizes[split]]
    start = sum(sizes[:index])
    return _cut(state, split, behind, dim, slice(start, start + sizes[index]))


def _cut(state: Propagation, node: fx.Node, behind: WeightView, dim: int, part: slice) -> WeightView | None:
    own = behind.axes[dim]
    if own in behind.parts or behind.parameter.op != "get_attr" or part.step not in (None, 1):
        return None
    state.weight_views[node.name] = (state.names[str(behind.parameter.target)], own)
    size = state.sizes[behind.parameter].shape[own]
    start, end, _ = part.indices(size)
    return replace(behind, parts={**behind.parts, own: slice(start, end)})


def _transposed(node: fx.Node, axes: tuple[int, ...]) -> tuple[int, ...]:
    order = list(axes)
    for axis in range(len(axes)):  # where the real operator takes each axis
        probe = torch.empty([2 if other == axis else 1 for other in range(len(axes))])
        moved: Any = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        order[list(moved.shape).index(2)] = axes[axis]
    return tuple(order)
