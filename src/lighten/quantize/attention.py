"""Attention written out as two products with a softmax between, so that both can be integer kernels.

Of the small networks here 7 to 8 % of the multiplications are in these products, of long sequences most.
"""

import math
from typing import Any

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, layer_of
from lighten.graph.shapes import node_sizes

aten = torch.ops.aten

ATTENTION = aten.scaled_dot_product_attention.default
SCORES, VALUES = "scores", "values"  # what the two products are called, after their module


def write_out_attention_(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> None:
    """Replace every scaled_dot_product_attention by softmax(q kᵀ · scale + mask) v, in place.

    Rows of a mask that leave nothing become NaN, as they do in exported float networks. Dropout, which is off in eval
    mode, goes.
    """
    found = [node for node in captured.graph.nodes if node.target is ATTENTION]
    if not found:
        return
    sizes = node_sizes(captured, example_inputs)
    for node in found:
        _write_out_(captured.graph, node, sizes)
    captured.graph.lint()
    captured.recompile()


def _write_out_(graph: fx.Graph, node: fx.Node, sizes: dict[fx.Node, Any]) -> None:
    given, layer = arguments(node), layer_of(node)

    def call(target: Any, *args: Any, part: str = "", **kwargs: Any) -> fx.Node:
        made = graph.call_function(target, args, kwargs)
        made.meta = {**node.meta, "layer": f"{layer}.{part}".strip(".") if part else layer}
        return made

    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    scale = sizes[query].shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    with graph.inserting_before(node):
        if given["enable_gqa"]:
            key, value = (
                call(aten.repeat_interleave.self_int, x, sizes[query].shape[-3] // sizes[x].shape[-3], -3)
                for x in (key, value)
            )
        product = call(aten.matmul.default, query, call(aten.transpose.int, key, -2, -1), part=SCORES)
        scores = call(aten.mul.Tensor, product, scale)
        if given["is_causal"]:
            visible = call(aten.tril.default, call(aten.ones_like.default, scores, dtype=torch.bool))
            scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, visible), -math.inf)
        if mask is not None and sizes[mask].dtype == torch.bool:
            scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, mask), -math.inf)
        elif mask is not None:
            scores = call(aten.add.Tensor, scores, mask)
        shares = call(aten.softmax.int, scores, -1)
        out = call(aten.matmul.default, shares, value, part=VALUES)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
