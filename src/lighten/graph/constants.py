"""Constants: sizes, bounds and counts that the author wrote into the forward pass, recomputed from what is left.

Every operator that names a size of its own result, a place along an axis or a number of groups has an entry here.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.capture import get_tensor
from lighten.graph.ids import by_index, tensors_in, varies
from lighten.graph.labels import Labels

aten = torch.ops.aten
Sizes = tuple[int, ...]


def kept_indices(ids: Tensor, axis: int, units: Tensor) -> Tensor:
    """[size] True for the indices along axis that are left when units go."""
    if not varies(ids, axis):  # whatever is removed, it is not along this axis
        return torch.ones(ids.shape[axis], dtype=torch.bool)
    line = by_index(ids, axis)[:, 0]  # ids are regular: any line along the axis shows them all
    return ~torch.isin(line, units)


def kept_shape(ids: Tensor, units: Tensor) -> Sizes:
    """The shape that is left of a tensor with these ids when units go."""
    return tuple(int(kept_indices(ids, axis, units).sum()) for axis in range(ids.ndim))


@dataclass(frozen=True)
class Rewriting:
    """One node of the graph, what it is given, its results' shapes before and after, and what goes."""

    node: fx.Node
    given: dict[str, Any]
    before: list[Sizes]
    after: list[Sizes]
    labels: Labels
    units: Tensor

    def kept(self, argument: str, axis: int) -> Tensor:
        """[size] what is left along an axis of a tensor argument."""
        source = self.given[argument]
        if self.labels.values.get(source.name) is None:  # a weight, cut before it is used
            parameter, axis = self.labels.weight_views[self.node.name]
            line = next((s.ids for s in self.labels.slots if (s.parameter, s.axis) == (parameter, axis)), None)
            return torch.ones(1, dtype=torch.bool) if line is None else ~torch.isin(line, self.units)
        return kept_indices(self.labels.values[source.name], axis, self.units)

    def shape_left(self, argument: str) -> Sizes:
        """The shape that is left of a tensor argument."""
        return kept_shape(self.labels.values[self.given[argument].name], self.units)


def rewrite_constants_(node: fx.Node, labels: Labels, units: Tensor, after: list[Sizes]) -> None:
    """Give node the constants that fit its results' new shapes, in place."""
    change = CHANGES.get(node.target)
    if change is not None:
        before = [tuple(t.shape) for t in tensors_in(labels.values[node.name])]
        change(Rewriting(node, arguments(node), before, after, labels, units))


def _result_size(r: Rewriting) -> None:
    name = next(n for n in ("size", "shape") if n in r.given)
    if r.before != r.after:
        set_argument_(r.node, name, _new_sizes(r.node, list(r.given[name]), r.before[0], r.after[0]))


def _unflatten(r: Rewriting) -> None:
    sizes = list(r.given["sizes"])
    axis = r.given["dim"] % (len(r.before[0]) - len(sizes) + 1)
    part = slice(axis, axis + len(sizes))
    set_argument_(r.node, "sizes", _new_sizes(r.node, sizes, r.before[0][part], r.after[0][part]))


def _new_sizes(node: fx.Node, sizes: list[Any], before: Sizes, after: Sizes) -> list[Any]:
    """sizes as the author wrote them, with the ones of axes that shrank replaced."""
    offset = len(after) - len(sizes)
    new = []
    for size, old, left in zip(sizes, before[offset:], after[offset:], strict=True):
        if old == left or (isinstance(size, int) and size == -1):
            new.append(size)
        elif isinstance(size, fx.Node):  # computed from the batch: batch · heads, say
            new.append(_scaled(node, size, left, old))
        else:
            new.append(left)
    return new


def _scaled(node: fx.Node, size: fx.Node, left: int, old: int) -> fx.Node:
    divisor = math.gcd(left, old)
    with node.graph.inserting_before(node):
        times = node.graph.call_function(operator.mul, (size, left // divisor))
        scaled = node.graph.call_function(operator.floordiv, (times, old // divisor))
    times.meta, scaled.meta = dict(node.meta), dict(node.meta)
    return scaled


def _split(r: Rewriting) -> None:
    if r.node.name in r.labels.weight_views:
        kept = r.kept("self", r.given["dim"])
        if not kept.all():
            sizes = [int(part.sum()) for part in r.node.target(kept, *r.node.args[1:2])]  # type: ignore[operator]
            r.node.target = aten.split_with_sizes.default
            r.node.args, r.node.kwargs = (r.given["self"], sizes, r.given["dim"]), {}
    elif r.before != r.after:
        dim = r.given["dim"]
        r.node.target = aten.split_with_sizes.default
        r.node.args, r.node.kwargs = (r.given["self"], [shape[dim] for shape in r.after], dim), {}


def _slice(r: Rewriting) -> None:
    kept = r.kept("self", r.given["dim"])
    if not kept.all():
        start, end, step = slice(r.given["start"], r.given["end"], r.given["step"]).indices(len(kept))
        new_start = int(kept[:start].sum())
        if step > 1:  # whole runs of `step` go: the place within the run stays
            new_start = int(kept[: start - start % step].sum()) + start % step
        r.node.args = (r.given["self"], r.given["dim"], new_start, int(kept[:end].sum()), step)


def _select(r: Rewriting) -> None:
    kept = r.kept("self", r.given["dim"])
    if not kept.all():
        index = r.given["index"] % len(kept)
        set_argument_(r.node, "index", int(kept[:index].sum()))


def _roll(r: Rewriting) -> None:
    shifts = []
    for shift, dim in zip(r.given["shifts"], r.given["dims"], strict=True):
        kept = r.kept("self", dim)
        tail = shift % len(kept)
        shifts.append(shift if kept.all() or not tail else int(kept[-tail:].sum()))
    set_argument_(r.node, "shifts", shifts)


def _index(r: Rewriting) -> None:
    """Constant indices along a channel axis are replaced by the places that these channels have now."""
    if r.node.target == aten.index_select.default:
        axes = {r.given["dim"] % len(r.labels.values[r.given["self"].name].shape): r.given["index"]}
    else:
        axes = {axis: i for axis, i in enumerate(r.given["indices"]) if i is not None}
    for axis, index in axes.items():
        kept = r.kept("self", axis)
        if kept.all():
            continue
        old = r.labels.data[index.name]
        if old.dtype == torch.bool:
            old = old.nonzero()[:, 0]
        old = old % len(kept)
        new = _new_buffer(r.node, (kept.cumsum(0) - 1)[old[kept[old]]])
        if r.node.target == aten.index_select.default:
            set_argument_(r.node, "index", new)
        else:
            set_argument_(r.node, "indices", [new if i is index else i for i in r.given["indices"]])


def _new_buffer(node: fx.Node, value: Tensor) -> fx.Node:
    module = node.graph.owning_module
    assert module is not None
    name = f"{node.name}_kept"
    module.register_buffer(name, value)
    with node.graph.inserting_before(node):
        return node.graph.get_attr(name)


def _groups(r: Rewriting) -> None:
    if r.given["groups"] > 1:
        module = r.node.graph.owning_module
        assert module is not None
        weight_node = r.given["weight"]
        while weight_node.op != "get_attr":  # weight norm
            weight_node = weight_node.args[0]
        weight = get_tensor(module, weight_node.target)
        n_in = r.shape_left("input")[1 - weight.ndim]
        groups = n_in if weight.shape[1] == 1 and not r.kept("input", 1 - weight.ndim).all() else r.given["groups"]
        set_argument_(r.node, "groups", groups)


def _transposed_groups(r: Rewriting) -> None:
    before = r.labels.values[r.given["input"].name].shape
    if r.given["groups"] > 1:
        n_axes = len(before) - len(r.before[0]) + len(r.given["stride"] or [1]) + 1
        axis = -n_axes
        if r.given["groups"] == before[axis]:
            set_argument_(r.node, "groups", r.shape_left("input")[axis])


def _num_groups(r: Rewriting) -> None:
    size = r.before[0][1] // r.given["num_groups"]
    set_argument_(r.node, "num_groups", r.after[0][1] // size)


def _attention_scale(r: Rewriting) -> None:
    """The scale that follows from the size of a head is the original head's."""
    old = r.labels.values[r.given["query"].name].shape[-1]
    if r.given["scale"] is None and r.shape_left("query")[-1] != old:
        set_argument_(r.node, "scale", old**-0.5)


def _output_size(r: Rewriting) -> None:
    if r.given.get("output_size") is not None and r.before != r.after:
        set_argument_(r.node, "output_size", None)


CHANGES: dict[Any, Callable[[Rewriting], None]] = {
    **dict.fromkeys(
        [aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default,
         aten.broadcast_to.default, aten.zeros.default,
         aten.ones.default, aten.full.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default],
        _result_size),
    aten.unflatten.int: _unflatten,
    **dict.fromkeys([aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default,
                     aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.unsafe_chunk.default,
                     aten.tensor_split.sections, aten.tensor_split.indices], _split),
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.roll.default: _roll,
    **dict.fromkeys([aten.index.Tensor, aten.index_select.default], _index),
    **dict.fromkeys(
        [getattr(getattr(aten, f"conv{n}d"), kind) for n in (1, 2, 3) for kind in ("default", "padding")], _groups),
    **dict.fromkeys(
        [aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input], _transposed_groups),
    aten.group_norm.default: _num_groups,
    aten.scaled_dot_product_attention.default: _attention_scale,
    **dict.fromkeys([aten.repeat_interleave.self_int, aten.repeat_interleave.self_Tensor], _output_size),
}  # fmt: skip
