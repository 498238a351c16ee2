"""Operators that run along an axis: sums, means, norms, softmax, running sums, sorting."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.graph.arguments import arguments
from lighten.graph.ids import no_ids, varies
from lighten.graph.rules.common import Rule, named, stay
from lighten.graph.state import Propagation

aten = torch.ops.aten

# A channel that is 0 adds nothing to these, so to remove it changes nothing either.
SUMS = {*named("sum", "linalg_vector_norm", "norm", "frobenius_norm", "count_nonzero")}


def reduction(state: Propagation, node: fx.Node) -> Any:
    """Mean, sum, …: the channels that are reduced over stay, unless it is a sum and they are 0; the others pass."""
    given = arguments(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids, axes = state.current(state.regular_ids(source)), given.get("dim")
    axes = list(range(ids.ndim)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % max(ids.ndim, 1) for axis in axes})
    if any(varies(ids, axis) for axis in axes):
        if node.target not in SUMS or not state.is_zero(source) or given.get("ord", 2) == 0:
            return stay(state, node, f"{node.target} takes its channels together: fewer give another result")
        return no_ids(state.sizes[node])
    for axis in reversed(axes):
        ids = ids.narrow(axis, 0, 1) if given.get("keepdim") else ids.select(axis, 0)
    if state.is_zero(source) and node.target not in NOT_ZERO_OF_ZEROS:
        state.zeros.add(node)
    return tree_map_only(Tensor, lambda t: ids if t.shape == ids.shape else no_ids(t), state.sizes[node])


def along_axis(state: Propagation, node: fx.Node) -> Any:
    """softmax, cumsum, sort, …: along an axis of channels they depend on each other, so they stay; others pass."""
    given = arguments(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ids = state.current(state.regular_ids(source))
    if ids.ndim and varies(ids, given["dim"]):
        return stay(state, node, f"{node.target} runs along its channels: fewer give another result")
    if state.is_zero(source) and node.target in ZERO_TO_ZERO:
        state.zeros.add(node)
    if all(t.shape == ids.shape for t in torch.utils._pytree.tree_leaves(state.sizes[node])):
        return tree_map_only(Tensor, lambda t: ids, state.sizes[node])
    axis = given["dim"] % ids.ndim  # topk: another length along the axis
    line = ids.narrow(axis, 0, 1)
    return tree_map_only(Tensor, lambda t: line.expand(t.shape), state.sizes[node])


NOT_ZERO_OF_ZEROS = {*named("logsumexp", "argmax", "argmin")}
ZERO_TO_ZERO = {*named("cumsum", "sort", "topk")}
RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        [*named("mean", "sum", "amax", "amin", "std", "var", "linalg_vector_norm", "logsumexp", "argmax", "argmin",
                "prod", "norm", "frobenius_norm", "any", "all", "count_nonzero"),
         aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim, aten.mode.default,
         aten.max.default, aten.min.default, aten.std_mean.correction, aten.std_mean.dim,
         aten.var_mean.correction, aten.var_mean.dim], reduction),
    **dict.fromkeys(named("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum",
                          "cumprod", "logcumsumexp", "cummax", "cummin", "sort",
                          "topk"),
                    along_axis),
}  # fmt: skip
