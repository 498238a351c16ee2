"""Labels: which elements of which tensors must be removed together, found by letting ids flow through the graph.

Every prunable channel gets an id. A tensor of ids stands for each activation, of the activation's own shape; id 0 means
"stays". What an operator does to ids is said in `rules/`; what all rules share is in `state.py`.

Ids are kept *regular*: what is left of a tensor after removal must again be a full grid, so along at most one of its
axes may different things be removed. Where ids vary along two axes (a channel axis split in two by `view`), those that
share an index along the axis that leaves the most choice are united. If all that is kept so turns out to be frozen, the
pass is repeated with the other axis: heads go where the dimensions of a head cannot.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule
from lighten.graph.ids import by_index, no_ids, spread, tensors_in, varies, varying_axes, without_repeats
from lighten.graph.rules import MOVES_ONLY, outputs_stay, rule_for
from lighten.graph.shapes import Shapes, find_shapes
from lighten.graph.split import head_axis, head_dim_axis
from lighten.graph.state import Propagation, Slot
from lighten.graph.union import choices_left

__all__ = ["Labels", "Slot", "propagate"]

# What `keep` may ask for where ids vary along several axes.
FIND_AXIS = {"channel": None, "head": head_axis, "head_dim": head_dim_axis}
MAX_PASSES = 4


@dataclass(frozen=True)
class Labels:
    """The outcome of the pass. Ids are already united: equal id = removed together.

    values: by node name, the ids of what it computes (a list of them where it returns several). slots: every axis that
    can shrink. frozen: layers whose channels stay although they might have gone, with the reason. lines: sets of ids
    that make up a tensor some operator computes with; each must keep something. found: ids of the units that `keep`
    asked for, where it was "head" or "head_dim". data: constant indices, by node name.
    weight_views: where a parameter is cut before a layer reads it, by node name: the parameter and the axis of the cut.
    """

    values: dict[str, Any]
    slots: list[Slot]
    frozen: dict[str, str]
    lines: list[Tensor]
    found: Tensor
    data: dict[str, Tensor]
    weight_views: dict[str, tuple[str, int]]


def propagate(captured: CapturedModule, example_inputs: tuple[Any, ...], keep: str = "channel") -> Labels:
    """Let ids flow through captured.

    example_inputs: any batch; only shapes matter. keep: the axis along which ids go on where a channel axis is split
    into attention heads and the dimensions of each: "head", "head_dim", or "channel" for whichever leaves more choice.

    Raises:
        ConfigError: keep is none of these.
    """
    if keep not in FIND_AXIS:
        raise ConfigError(f"keep='{keep}' is unknown. Use one of {', '.join(FIND_AXIS)}.")
    shapes, avoid = find_shapes(captured, example_inputs), set[tuple[str, int]]()
    for _ in range(MAX_PASSES):
        state = _one_pass(captured, shapes, avoid, keep)
        roots = state.unions.roots()
        dead = {(name, axis) for name, axis, line in state.choices if not roots[line].any()}
        if dead <= avoid:
            break
        avoid |= dead
    return _collect(state)


def _one_pass(captured: CapturedModule, shapes: Shapes, avoid: set[tuple[str, int]], keep: str) -> Propagation:
    state = Propagation(captured, shapes, set(avoid), FIND_AXIS[keep])
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            state.values[node] = no_ids(state.sizes[node])
        elif node.op == "output":
            outputs_stay(state, node)
        elif node.op != "get_attr":
            made = rule_for(node)(state, node)
            # A free value takes the axis that its readers want; see _settle.
            state.values[node] = made if node in shapes.free else _regular(state, node, made)
    _settle(state)
    return state


def _settle(state: Propagation) -> None:
    """What can only be seen once everything has met."""
    for name, axis in state.slots:
        if name in state.elements:
            reason = f"{name} is used as a weight and otherwise"
            state.freeze(state.slots[name, axis].ids, reason)
            state.freeze(state.elements[name], reason)
    for node in state.captured.graph.nodes:
        if node.op == "get_attr" and state.names.get(str(node.target)) in state.elements:
            state.values[node] = state.element_ids(node)
        if node in state.shapes.free and node in state.values:
            state.values[node] = tree_map_only(Tensor, partial(_take_axis, state), state.values[node])
    roots = state.unions.roots()
    for line, size, reason in state.blocks:
        blocks = roots[line].view(-1, size) if len(line) % size == 0 else None
        if blocks is None or bool((blocks != blocks[:, :1]).any()):
            state.freeze(line, reason)
    _keep_something(state)


def _take_axis(state: Propagation, ids: Tensor) -> Tensor:
    """Free ids along the one axis along which they have met channels that a layer owns."""
    axes = varying_axes(ids)
    if not axes:
        return ids
    roots = state.unions.roots()
    owned = torch.cat([torch.zeros(1, dtype=torch.int64), *(slot.ids for slot in state.slots.values())])
    now = roots[without_repeats(ids)[0]]
    mine = torch.isin(now, roots[owned].unique()) & (now != 0)
    if not mine.any():
        state.freeze(ids, "no layer owns it")
        return no_ids(ids)  # type: ignore[no-any-return]
    keep = max(axes, key=lambda axis: (choices_left(now, axis, mine), axis))
    return spread(state.along(ids, keep), keep, ids.shape)


def _regular(state: Propagation, node: fx.Node, value: Any) -> Any:
    return tree_map_only(Tensor, partial(state.regular, node), value)


def _keep_something(state: Propagation) -> None:
    """A unit that is all there is of a tensor stays."""
    roots = state.unions.roots()
    everything = [ids for node, value in state.values.items() if node.op != "output" for ids in tensors_in(value)]
    for ids in (*everything, *(slot.ids for slot in state.slots.values())):
        small = without_repeats(ids)[0].reshape(-1)
        if len(small) and small[0] != 0:
            now = roots[small]
            if now[0] != 0 and bool((now == now[0]).all()):
                state.freeze(now[:1], "all channels of a tensor hang together, so none of them can go")


def _collect(state: Propagation) -> Labels:
    roots = state.unions.roots()

    def united(ids: Tensor) -> Tensor:
        return roots[without_repeats(ids)[0]].expand(ids.shape)

    slots = [replace(slot, ids=roots[slot.ids]) for slot in state.slots.values()]
    for name, ids in state.elements.items():
        now = united(ids)
        slots += [Slot(name, axis, "carried", by_index(now, axis)[:, 0]) for axis in varying_axes(now)]
    values = {node.name: tree_map_only(Tensor, united, value) for node, value in state.values.items()}
    frozen = _frozen(state, roots)
    data = {node.name: value for node, value in state.shapes.data.items()}
    found = roots[torch.cat([torch.zeros(1, dtype=torch.int64), *state.found])].unique()
    return Labels(
        values,
        [s for s in slots if s.ids.any()],
        frozen,
        _lines(state, values),
        found,
        data,
        state.weight_views,
    )


def _frozen(state: Propagation, roots: Tensor) -> dict[str, str]:
    reason_of = {int(i): reason for ids, reason in reversed(state.frozen) for i in ids}
    frozen = dict(state.kept_layers)
    for slot in state.slots.values():
        if slot.role == "output":
            stay = slot.ids[roots[slot.ids] == 0].tolist()
            if stay:
                reason = next((reason_of[i] for i in stay if i in reason_of), "tied to channels that must stay")
                frozen.setdefault(slot.parameter.rpartition(".")[0] or slot.parameter, reason)
    return frozen


def _lines(state: Propagation, values: dict[str, Any]) -> list[Tensor]:
    """The sets of ids in the results of operators that compute; a tensor that is only moved may become empty."""
    lines: dict[bytes, Tensor] = {}
    for node in state.values:
        if isinstance(node, fx.Node) and node.op == "call_function" and node.target not in MOVES_ONLY:
            for ids in tensors_in(values[node.name]):
                for axis in range(ids.ndim):
                    if varies(ids, axis):
                        line = by_index(ids, axis)[:, 0].unique()
                        lines.setdefault(line.numpy().tobytes(), line)
    return list(lines.values())
