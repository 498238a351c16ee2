"""Scaled dot-product attention: two contractions with a softmax between.

query [..., heads, length, dim], key [..., heads, other length, dim], value [..., heads, other length, value dim]. With
grouped queries several query heads share one key and value head, so these go together.
"""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.ids import no_ids, spread
from lighten.graph.rules.common import Rule, line_of, named
from lighten.graph.rules.contraction import CROSSED, SUMMED
from lighten.graph.rules.elements import take_ids
from lighten.graph.state import Propagation

aten = torch.ops.aten


def attention(state: Propagation, node: fx.Node) -> Any:
    """softmax(q kᵀ · scale + mask) v. Without a scale, rewriting writes the original head's into the graph."""
    given = arguments(node)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    q, k, v = (state.current(state.regular_ids(n)) for n in (query, key, value))
    shape = state.sizes[node].shape
    if given["enable_gqa"]:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    dims = line_of(q, -1)
    state.unite(dims, line_of(k, -1))
    if not (state.is_zero(query) or state.is_zero(key)):
        state.freeze(dims, SUMMED)
    roles = [(ids, axis, "batch") for ids in (q, k, v) for axis in range(-ids.ndim, -2)]
    roles += [(q, -1, "summed"), (k, -1, "summed"), (v, -1, "passed"), (q, -2, "passed")]
    state.met += [(line, role) for ids, axis, role in roles if (line := line_of(ids, axis)).any()]
    for ids in (line_of(k, -2), line_of(v, -2)):
        state.freeze(ids, "attention's softmax runs along them")
    batch = {axis: _batch_line(state, axis, q, k, v) for axis in range(-len(shape), -2)}
    candidates = {**batch, -2: line_of(q, -2), -1: line_of(v, -1)}
    having = [axis for axis, line in candidates.items() if line.any()]
    for axis in having[1:]:
        state.freeze(candidates[axis], CROSSED)
    scores = (*shape[:-1], k.shape[-2])
    if not having or having[0] == -1:  # the dimensions of values are no axis of the scores
        _meet_mask(state, given["attn_mask"], no_ids(torch.empty(scores, device="meta")))
    else:
        _meet_mask(state, given["attn_mask"], spread(candidates[having[0]], having[0], scores))
    if not having:
        return no_ids(state.sizes[node])
    axis, line = having[0], candidates[having[0]]
    if axis != -2 and state.is_zero(value):
        state.zeros.add(node)
    return spread(line, axis, shape)


def _batch_line(state: Propagation, axis: int, *operands: Tensor) -> Tensor:
    """The ids along a batch axis, united over those operands that are not broadcast there."""
    lines = [line_of(ids, axis) for ids in operands if ids.ndim >= -axis and ids.shape[axis] > 1]
    if not lines:
        return torch.zeros(1, dtype=torch.int64)
    for line in lines[1:]:
        state.unite(lines[0], line)
    return lines[0] if all(bool(line.any()) for line in lines) else torch.zeros_like(lines[0])


def _meet_mask(state: Propagation, mask: Any, scores: Tensor) -> None:
    """A mask is added to the scores [..., heads, length, other length]."""
    if not isinstance(mask, fx.Node):
        return
    if mask in state.shapes.free:
        take_ids(state, state.ids(mask), scores)
        return
    ids = state.regular_ids(mask)
    for axis in range(-ids.ndim, 0):
        line = line_of(ids, axis)
        if line.any() or ids.shape[axis] > 1:
            other = line_of(scores, axis)
            if len(line) == len(other):
                state.unite(line, other)
            else:
                state.freeze(line, "it is a broadcast mask")


RULES: dict[Any, Rule] = {**dict.fromkeys(named("scaled_dot_product_attention"), attention)}
