"""Products of activations, and attention, which is two of them around a softmax."""

import math
from typing import Any

import torch
from torch import fx

from lighten.export.native.ids import Ids, batch_of, by_rows, in_rows, one_sample
from lighten.export.native.operators import combined, made
from lighten.export.native.reader import Handler, Reader, must
from lighten.export.native.reductions import reduced, softmax_along
from lighten.graph.arguments import arguments
from lighten.runtime.native.program import Matmul

aten = torch.ops.aten


def multiplied(reader: Reader, a: Any, b: Any, scale: float = 1.0) -> Ids:
    """scale · a @ b, for each index of the leading axes."""
    build, values = reader.build, [reader.ids(a), reader.ids(b)]
    lead = torch.broadcast_shapes(*(value.at.shape[:-2] for value in values))
    values = [Ids(value.at.expand(*lead, *value.at.shape[-2:])) for value in values]
    batch = batch_of(*values)
    must(batch.axis < len(lead), "it mixes the samples of a batch")
    left, right = (one_sample(value, batch) for value in values)
    axes = list(range(len(lead)))
    groups, depth, size = math.prod(left.shape[:-2]), left.shape[-1], right.shape[-1]
    x, x_start = build.rows_of(by_rows(left, [*axes, -1]))
    down, across = by_rows(right, [*axes, -2]), by_rows(right, [*axes, -1])
    is_across = build.part(down, is_line=True) is None and build.part(across, is_line=True) is not None
    w, w_start = build.rows_of(across if is_across else down, is_line=True)
    op = Matmul(
        inputs=(x, w),
        starts=(x_start, w_start),
        groups=groups,
        depth=depth,
        size=size,
        across=is_across,
        scale=scale,
    )
    return made(reader, op, in_rows((*left.shape[:-1], size), [*axes, -1]), batch)


def _attention(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """A query that may see no key gets zeros, as in torch."""
    query, key, value = (reader.ids(given[name]) for name in ("query", "key", "value"))
    mask, n, m = given["attn_mask"], query.at.shape[-2], key.at.shape[-2]
    must(given["dropout_p"] == 0, f"dropout_p={given['dropout_p']}")
    if given["enable_gqa"]:
        times = query.at.shape[-3] // key.at.shape[-3]
        key, value = (Ids(each.at.repeat_interleave(times, -3)) for each in (key, value))
    if given["is_causal"]:
        mask = torch.ones(n, m, dtype=torch.bool).tril()
    scale = query.at.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    scores = multiplied(reader, query, Ids(key.at.transpose(-1, -2)), scale)
    if mask is None:
        return multiplied(reader, softmax_along(reader, scores, -1), value)
    mask_node = arguments(node)["attn_mask"]
    is_choice = mask_node is None or mask_node.meta["val"].dtype == torch.bool
    scores = combined(reader, *(("where", mask, scores, -math.inf) if is_choice else ("add", scores, mask)))
    weights = softmax_along(reader, scores, -1)
    if isinstance(mask, Ids) or not bool((mask if is_choice else mask > -math.inf).any(-1).all()):
        sees = combined(reader, "gt", reduced(reader, "max", scores, [-1], True), -math.inf)
        weights = combined(reader, "where", sees, weights, 0.0)
    return multiplied(reader, weights, value)


HANDLERS: dict[Any, Handler] = {
    aten.scaled_dot_product_attention.default: _attention,
}
