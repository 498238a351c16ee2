"""Placement: which tensors of a graph are quantized, so that the runtime finds whole integer kernels.

ONNX Runtime turns DequantizeLinear → operator → QuantizeLinear into one integer kernel when every tensor at the
operator's border is quantized, and drops the pair around operators that only move data if both ends share one scale.
So: what convolutions and linear layers read is quantized; what a convolution makes is quantized after its activation
function (which is then part of the rounding); additions and concatenations are quantized where what follows is; data
movement and max pooling pass the scale on.
"""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import layer_of

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default}
WEIGHTED = CONVOLUTIONS | {aten.linear.default}
CLIPPING = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}  # done by the clamp of the rounding
JOINING = {aten.add.Tensor, aten.mul.Tensor, aten.cat.default}
MOVING = {
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.view.default, aten.reshape.default),
    *(aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim),
    *(aten.squeeze.dims, aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.slice.Tensor),
    *(aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, operator.getitem),
}
AVERAGING = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim}


@dataclass(frozen=True)
class Placement:
    """points: nodes whose result is quantized with a scale of its own. followers: node -> the node whose scale it
    shares. weighted: layers that become integer kernels. skipped: layers that stay float, with the reason."""

    points: tuple[fx.Node, ...]
    followers: dict[fx.Node, fx.Node]
    weighted: tuple[fx.Node, ...]
    skipped: dict[str, str]


def place(graph: fx.Graph, excluded: frozenset[str] = frozenset()) -> Placement:
    """Choose the tensors to quantize. excluded: names of layers that stay float."""
    weighted, skipped = _weighted_layers(graph, excluded)
    wanted: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        after = _clipped(node)
        if node in weighted:
            wanted.add(arguments(node)["input"])
            if node.target in CONVOLUTIONS:
                wanted.add(after)
        elif node in wanted and node.target in MOVING:
            wanted.add(_source(node))
        elif after in wanted and node.target in JOINING and _joins_tensors(node):
            wanted.update(node.all_input_nodes)
        elif node in wanted and node.target in AVERAGING:
            wanted.add(node.all_input_nodes[0])
    # What is wanted only because a clipping follows would be rounded twice.
    wanted -= {node for node in wanted if _clipped(node) is not node and _clipped(node) in wanted}
    followers = {node: _root(node) for node in graph.nodes if node in wanted and node.target in MOVING}
    points = tuple(node for node in graph.nodes if node in wanted and node not in followers)
    returns_several = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}
    followers = {node: root for node, root in followers.items() if node.target not in returns_several}
    return Placement(points, followers, tuple(n for n in graph.nodes if n in weighted), skipped)


def _weighted_layers(graph: fx.Graph, excluded: frozenset[str]) -> tuple[set[fx.Node], dict[str, str]]:
    weighted, skipped = set(), {}
    for node in graph.nodes:
        if node.target not in WEIGHTED:
            continue
        given = arguments(node)
        name = layer_of(given["weight"]) or layer_of(node)
        parameters = [given[key] for key in ("weight", "bias") if given[key] is not None]
        if name in excluded:
            skipped[name] = "not quantized: excluded"
        elif any(p.op != "get_attr" for p in parameters):
            skipped[name] = "not quantized: its weight is computed, not stored"
        elif any(len(p.users) > 1 for p in parameters):
            skipped[name] = "not quantized: its weight is shared with another layer"
        else:
            weighted.add(node)
    return weighted, skipped


def _clipped(node: fx.Node) -> fx.Node:
    """The activation function that alone reads node, or node itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLIPPING else node


def _joins_tensors(node: fx.Node) -> bool:
    if node.target == aten.add.Tensor and arguments(node)["alpha"] != 1:
        return False
    inputs = node.all_input_nodes
    return all(n.op != "get_attr" for n in inputs) and (node.target == aten.cat.default or len(inputs) == 2)


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _root(node: fx.Node) -> fx.Node:
    while node.target in MOVING:
        node = _source(node)
    return node
