"""Contractions: matrix products and einsum, of activations with weights or with each other.

Along an axis that is summed over, the ids of all operands unite; so do those along an axis that all of them have. The
others pass. A parameter takes part by the axes it has: it reads, makes or carries ids, as a linear layer's weight does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.ids import by_index, no_ids, spread, varying_axes
from lighten.graph.rules.common import Rule, line_of, named, not_understood
from lighten.graph.rules.elements import take_ids
from lighten.graph.rules.weights import WeightView, is_only_a_weight, tie_view, weight_view
from lighten.graph.state import Propagation

aten = torch.ops.aten
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CROSSED = "its channels would form a matrix with other channels"
SUMMED = "it is summed over although it is not 0 where a channel is 0"


@dataclass(frozen=True)
class Operand:
    """A factor of a product. axes: a letter for each; equal letters are the same axis of the product."""

    node: fx.Node
    axes: str


def contract(state: Propagation, node: fx.Node, operands: list[Operand], result: str) -> Tensor:
    """Ids of the product of operands, whose axes are the letters of result; letters that are not in it are summed."""
    shape = state.sizes[node].shape
    if any(len(set(o.axes)) < len(o.axes) for o in operands) or len(set(result)) < len(result):
        return not_understood(state, node)  # type: ignore[no-any-return]  # a diagonal
    weights = [(o, view) for o in operands if (view := weight_view(state, o.node)) is not None]
    activations = [o for o in operands if all(o is not known for known, _ in weights)]
    lines = _lines_of(state, activations, result + "".join(o.axes for o, _ in weights))
    for letter, line in lines.items():
        holders = [o for o in activations if letter in o.axes]
        in_weight = any(letter in o.axes for o, _ in weights)
        if letter not in result and not in_weight and not any(state.is_zero(o.node) for o in holders):
            state.freeze(line, SUMMED)
            lines[letter] = torch.zeros_like(line)
    passing = _one_that_passes(state, node, lines, result)
    made = _make(state, node, weights, lines, result, passing)
    _tie(state, weights, {**lines, **made}, result, set(made))
    axis = passing if passing is not None else next((result.index(x) for x in made if made[x].any()), None)
    if axis is None:
        return no_ids(state.sizes[node])  # type: ignore[no-any-return]
    letter = result[axis]
    if letter in made or any(letter in o.axes for o, _ in weights) or any(
        letter in o.axes and state.is_zero(o.node) for o in activations
    ):  # fmt: skip
        state.zeros.add(node)
    return spread(made[letter] if letter in made else lines[letter], axis, shape)


def weight_norm(state: Propagation, node: fx.Node) -> Any:
    """v · g / |v|: the layers that read it tie v and g (see Propagation.tie); a zeroed input adds nothing to |v|."""
    return None if is_only_a_weight(node) else not_understood(state, node)


def _lines_of(state: Propagation, activations: list[Operand], left: str) -> dict[str, Tensor]:
    """For each letter, the ids along it, united over the operands that have it.

    left: the letters that outlive the product of the activations: in the result, or in a weight that comes after.
    """
    sizes: dict[str, int] = {}
    for operand in activations:
        for letter, size in zip(operand.axes, state.sizes[operand.node].shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    lines: dict[str, Tensor] = {}
    for operand in activations:
        ids = state.current(state.regular_ids(operand.node))
        for axis, letter in enumerate(operand.axes):
            if ids.shape[axis] < sizes[letter]:
                continue  # broadcast
            line = line_of(ids, axis)
            if len(activations) > 1 and line.any():
                shared = sum(letter in o.axes for o in activations) > 1
                state.met.append((line, "summed" if letter not in left else "batch" if shared else "passed"))
            if letter in lines:
                state.unite(lines[letter], line)
                line = torch.minimum(lines[letter], line)  # 0, if one of them stays
            lines[letter] = line
    return lines


def _one_that_passes(state: Propagation, node: fx.Node, lines: dict[str, Tensor], result: str) -> int | None:
    """Of the axes of the result that have ids already, the one that keeps them; the others' ids stay."""
    having = [axis for axis, letter in enumerate(result) if letter in lines and bool(lines[letter].any())]
    if not having:
        return None
    wanted = [axis for axis in having if (node.name, axis) not in state.avoid]
    keep = max(wanted, key=lambda axis: len(lines[result[axis]].unique())) if wanted else None
    for axis in having:
        if axis != keep:
            state.freeze(lines[result[axis]], CROSSED)
            lines[result[axis]] = torch.zeros_like(lines[result[axis]])
    if keep is not None:
        state.choices.append((node.name, keep, lines[result[keep]]))
    return keep


def _make(
    state: Propagation,
    node: fx.Node,
    weights: list[tuple[Operand, WeightView]],
    lines: dict[str, Tensor],
    result: str,
    passing: int | None,
) -> dict[str, Tensor]:
    """New ids along the axes that only a weight has; zeros if others pass already, for ids vary along one axis."""
    made: dict[str, Tensor] = {}
    for operand, view in weights:
        shape = state.sizes[operand.node].shape
        new = [x for x in operand.axes if x not in lines and x in result and x not in made]
        sizes = [shape[operand.axes.index(x)] for x in new]
        made.update({x: torch.zeros(n, dtype=torch.int64) for x, n in zip(new, sizes, strict=True)})
        if new and passing is None and state.is_trained(view.parameter) and not any(m.any() for m in made.values()):
            grid = state.fresh(*sizes)
            if len(new) > 1:  # a weight that makes heads and their dimensions at once
                axes = [result.index(x) for x in new]
                order = sorted(range(len(new)), key=axes.__getitem__)
                wide = grid.permute(order).reshape([shape[operand.axes.index(x)] if x in new else 1 for x in result])
                wide = state.regular(node, wide.expand(state.sizes[node].shape))
                made.update({x: line_of(wide, result.index(x)) for x in new})
            else:
                made[new[0]] = grid
    return made


def _tie(
    state: Propagation,
    weights: list[tuple[Operand, WeightView]],
    lines: dict[str, Tensor],
    result: str,
    made: set[str],
) -> None:
    for operand, view in weights:
        for place, letter in enumerate(operand.axes):
            size = state.sizes[operand.node].shape[place]
            line = lines.get(letter, torch.zeros(size, dtype=torch.int64))
            if len(line) != size:  # the weight is broadcast
                state.freeze(line, "a weight is broadcast over its channels")
                line = torch.zeros(size, dtype=torch.int64)
            role = "output" if letter in made and state.is_trained(view.parameter) else "carried"
            tie_view(state, view, place, role if letter in result else "input", line)


def add_bias(state: Propagation, node: fx.Node, bias: fx.Node | None, ids: Tensor) -> Tensor:
    """A bias is added to the last axis: it rides along."""
    if bias is None:
        return ids
    line = line_of(ids, -1)
    if not line.any():  # what passes along another axis is no longer 0
        state.zeros.discard(node)
    view = weight_view(state, bias)
    if view is not None and state.sizes[bias].shape == line.shape:
        tie_view(state, view, 0, "carried", line)
        return ids
    for axis in varying_axes(ids):  # a computed bias
        state.freeze(by_index(ids, axis)[:, 0], "a computed bias is added to its channels")
    state.freeze(state.ids(bias), "it is added as a bias")
    return no_ids(state.sizes[node])  # type: ignore[no-any-return]


def matmul(state: Propagation, node: fx.Node) -> Any:
    """Matrix products, with batch axes that broadcast."""
    left, right = list(arguments(node).values())[:2]
    return _matmul(state, node, left, right)


def _matmul(state: Propagation, node: fx.Node, left: fx.Node, right: fx.Node) -> Tensor:
    n_left, n_right = state.sizes[left].ndim, state.sizes[right].ndim
    batch = LETTERS[: max(n_left, n_right, 2) - 2]
    own_left, own_right = "xy"[max(0, 2 - n_left) :], "yz"[: min(2, n_right)]
    left_axes = (batch[len(batch) - (n_left - 2) :] if n_left > 2 else "") + own_left
    right_axes = (batch[len(batch) - (n_right - 2) :] if n_right > 2 else "") + own_right
    result = batch + (own_left + own_right).replace("y", "")
    return contract(state, node, [Operand(left, left_axes), Operand(right, right_axes)], result)


def matmul_added(state: Propagation, node: fx.Node) -> Any:
    """addmm and baddbmm: a product is added to something."""
    given = arguments(node)
    left, right = [given[name] for name in given if name in ("mat1", "mat2", "batch1", "batch2")]
    ids = _matmul(state, node, left, right)
    added = given["self"]
    if added.op == "get_attr" and state.sizes[added].ndim == 1:
        return add_bias(state, node, added, ids)
    if added.op == "get_attr" or not state.is_zero(added):
        state.zeros.discard(node)
    if added in state.shapes.free:
        take_ids(state, state.ids(added), ids)
        return ids
    other = state.current(state.regular_ids(added))
    if other.shape == ids.shape:
        state.unite(ids, other)
        return ids
    state.freeze(other, "it is broadcast over a product")
    state.freeze(ids, "something is broadcast over a product")
    return no_ids(state.sizes[node])


def einsum(state: Propagation, node: fx.Node) -> Any:
    """By its equation; an ellipsis stands for batch axes."""
    given = arguments(node)
    factors = list(given["tensors"])
    left, arrow, result = str(given["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    free = [x for x in LETTERS.upper() if x not in left]
    longest = max(state.sizes[f].ndim - len(t.replace("...", "")) for f, t in zip(factors, terms, strict=True))
    batch = "".join(free[:longest])
    full = []
    for factor, term in zip(factors, terms, strict=True):
        n_batch = state.sizes[factor].ndim - len(term.replace("...", ""))
        full.append(term.replace("...", batch[len(batch) - n_batch :]))
    if not arrow:
        letters = "".join(full)
        result = ("..." if "..." in left else "") + "".join(
            sorted(x for x in set(letters) - set(batch) if letters.count(x) == 1)
        )
    operands = [Operand(f, axes) for f, axes in zip(factors, full, strict=True)]
    return contract(state, node, operands, result.replace("...", batch))


RULES: dict[Any, Rule] = {
    **dict.fromkeys(named("_weight_norm"), weight_norm),
    **dict.fromkeys(named("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(named("addmm", "baddbmm"), matmul_added),
    **dict.fromkeys(named("einsum"), einsum),
}
