"""Placement: which tensors of a graph are quantized, so that the runtime finds whole integer kernels.

ONNX Runtime turns DequantizeLinear → operator → QuantizeLinear into one integer kernel when every tensor at the
operator's border is quantized, and drops the pair around operators that only move data if both ends share one scale.
So: what convolutions and linear layers read is quantized, and both sides of a product of two activations, each with a
scale of its own; what a convolution makes is quantized after its activation
function (which is then part of the rounding); additions, concatenations and means are quantized where an integer
kernel comes before and after, because between floats rounding would cost and save nothing; data movement, max pooling
and what cuts channels at an end of their own pass the scale on.
"""

import operator
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import layer_of
from lighten.graph.groups import matches

aten = torch.ops.aten

CONVOLUTIONS = {
    *(aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding),
    *(aten.conv3d.default, aten.conv3d.padding),
}
WEIGHTED = CONVOLUTIONS | {aten.linear.default}
FLOAT_ONLY = {  # layers with a weight, but without an integer kernel that takes it
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input),
    *(aten.conv_transpose3d.input, aten.bilinear.default, aten.embedding.default, aten.embedding_bag.padding_idx),
    *(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input),
}
PRODUCTS = {aten.matmul.default, aten.bmm.default}
JOINING = {aten.add.Tensor, aten.mul.Tensor, aten.cat.default}
MAX_POOLING = {aten.max_pool1d.default, aten.max_pool2d.default}
RETURNS_SEVERAL = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}
MOVING = {
    *(*MAX_POOLING, *RETURNS_SEVERAL, operator.getitem, aten.view.default, aten.reshape.default),
    *(aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim),
    *(aten.squeeze.dims, aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.slice.Tensor),
    *(aten.select.int, aten.narrow.default),
}
PADDING = {aten.pad.default, aten.constant_pad_nd.default}
AVERAGING = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim}


@dataclass(frozen=True)
class Placement:
    """points: nodes whose result is quantized with a scale of its own. followers: node -> the node whose scale it
    shares. weighted: layers that become integer kernels, by node with their names. products: of activations, that
    become integer kernels. skipped: what stays float, with the reason."""

    points: tuple[fx.Node, ...]
    followers: dict[fx.Node, fx.Node]
    weighted: dict[fx.Node, str]
    products: tuple[fx.Node, ...]
    skipped: dict[str, str]


def place(graph: fx.Graph, exclude: Iterable[str] = (), empty: Collection[str] = ()) -> Placement:
    """Choose the tensors to quantize. exclude: shell patterns over names of layers that stay float. empty: names of
    parameters without elements."""
    exclude = tuple(exclude)
    weighted, skipped = _weighted_layers(graph, exclude, empty)
    products, float_products = _products(graph, exclude)
    skipped |= float_products
    integer = _made_by_integers(graph, [*weighted, *products])
    wanted: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        after = _clipped(node)
        if node in weighted:
            wanted.add(arguments(node)["input"])
            if node.target in CONVOLUTIONS:
                wanted.add(after)
        elif node in wanted and moves(node):
            wanted.add(_source(node))
        elif after in wanted and node in integer and node.target in JOINING and _joins_tensors(node):
            wanted.update(node.all_input_nodes)
        elif node in wanted and node in integer and node.target in AVERAGING:
            wanted.add(_source(node))
    # What is wanted only because a clipping follows would be rounded twice.
    wanted -= {node for node in wanted if _clipped(node) is not node and _clipped(node) in wanted}
    moved = {node for node in wanted if moves(node)}
    followers = {node: _root(node) for node in graph.nodes if node in moved and node.target not in RETURNS_SEVERAL}
    for factor in (factor for product in products for factor in product.all_input_nodes):
        # Queries, keys and values are often parts of one tensor and of very different size, so they share no scale.
        own = _only_moved(factor)
        if own in moved or factor in moved:
            continue
        wanted.add(own)
        while factor is not own:
            followers[factor], factor = own, _source(factor)
    points = tuple(node for node in graph.nodes if node in wanted and node not in moved)
    return Placement(points, followers, weighted, products, skipped)


def pool_after_clipping_(graph: fx.Graph) -> None:
    """Turn relu(max_pool(x)) into max_pool(relu(x)), which is the same, so that the clipping meets its convolution."""
    for node in list(graph.nodes):
        if not _is_clipping(node):
            continue
        pool = _source(node)
        if pool.target in MAX_POOLING and list(pool.users) == [node]:
            before = _source(pool)
            node.replace_all_uses_with(pool)
            pool.replace_input_with(before, node)
            node.replace_input_with(pool, before)
            node.append(pool)


def _weighted_layers(
    graph: fx.Graph, exclude: tuple[str, ...], empty: Collection[str]
) -> tuple[dict[fx.Node, str], dict[str, str]]:
    readers = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr" for _ in node.users)
    weighted, skipped = {}, {}
    for node in graph.nodes:
        if node.target in FLOAT_ONLY:
            skipped[layer_of(node)] = f"not quantized: {node.target} has no integer kernel"
        if node.target not in WEIGHTED:
            continue
        given = arguments(node)
        parameters = [given[key] for key in ("weight", "bias") if given[key] is not None]
        name = layer_of(given["weight"]) or layer_of(node)
        if matches(name, exclude) or matches(layer_of(node), exclude):
            skipped[name] = "not quantized: excluded"
        elif any(p.op != "get_attr" for p in parameters):
            skipped[name] = "not quantized: its weight is computed, not stored"
        elif any(readers[str(p.target)] > 1 for p in parameters):
            skipped[layer_of(node)] = "not quantized: its weight is shared with another layer"
        elif any(p.target in empty for p in parameters):
            skipped[name] = "not quantized: its weight is empty"
        else:
            weighted[node] = name
    return weighted, skipped


def _products(graph: fx.Graph, exclude: tuple[str, ...]) -> tuple[tuple[fx.Node, ...], dict[str, str]]:
    """Those of two activations, and why others stay float."""
    found, skipped = [], {}
    for node in graph.nodes:
        if node.target not in PRODUCTS or any(n.op == "get_attr" for n in node.all_input_nodes):
            continue
        if matches(layer_of(node), exclude):
            skipped[layer_of(node)] = "not quantized: excluded"
        else:
            found.append(node)
    return tuple(found), skipped


def _made_by_integers(graph: fx.Graph, weighted: Iterable[fx.Node]) -> set[fx.Node]:
    """Integer kernels, and what only moves, clips, joins or averages a result of theirs."""
    made = set(weighted)
    for node in graph.nodes:
        passes = moves(node) or node.target in JOINING | AVERAGING or _is_clipping(node)
        if passes and any(n in made for n in node.all_input_nodes):
            made.add(node)
    return made


def pads_with_zeros(node: fx.Node) -> bool:
    """Whether node puts zeros around a tensor: of any scale, since 0 is a code of each."""
    given = arguments(node) if node.target in PADDING else {}
    return bool(given) and given.get("mode", "constant") == "constant" and not given["value"]


def upper_clip(node: fx.Node) -> float | None:
    """Where node, a relu6 or a hardtanh from 0, clips; None = it is neither."""
    if not _is_clipping(node) or node.target == aten.relu.default:
        return None
    return float(arguments(node).get("max_val", 6))


def moves(node: fx.Node) -> bool:
    """Whether values pass node unchanged, or cut, so that codes do; to take one of several results does where those
    are parts of one tensor."""
    if node.target == operator.getitem:
        return _source(node).target in RETURNS_SEVERAL
    return node.target in MOVING or pads_with_zeros(node) or cuts_channels(node)


def cut_of(node: fx.Node) -> fx.Node:
    """What alone reads node and cuts its channels, or node itself: a range has to span no more than comes out."""
    users = list(node.users)
    return users[0] if len(users) == 1 and cuts_channels(users[0]) else node


def cuts_channels(node: fx.Node) -> bool:
    """Whether node is the smaller of an activation and a constant, as equalization leaves behind a relu6."""
    return node.target == aten.minimum.default and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"


def _is_clipping(node: fx.Node) -> bool:
    """Whether the clamp of the rounding does what node does: cut at 0, the lowest code of a range from 0."""
    if node.target == aten.hardtanh.default:
        return bool(arguments(node)["min_val"] == 0)
    return node.target in (aten.relu.default, aten.relu6.default)


def _clipped(node: fx.Node) -> fx.Node:
    """The activation function that alone reads node, or node itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _is_clipping(users[0]) else node


def _joins_tensors(node: fx.Node) -> bool:
    if node.target == aten.add.Tensor and arguments(node)["alpha"] != 1:
        return False
    inputs = node.all_input_nodes
    return all(n.op != "get_attr" for n in inputs) and (node.target == aten.cat.default or len(inputs) == 2)


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _only_moved(node: fx.Node) -> fx.Node:
    """The farthest node before whose only use is to be moved to where node is."""
    while (
        moves(node)
        and node.target not in RETURNS_SEVERAL
        and len(_source(node).users) == 1
        and _source(node).target
        not in (
            *RETURNS_SEVERAL,
            operator.getitem,
        )
    ):
        node = _source(node)
    return node


def _root(node: fx.Node) -> fx.Node:
    while moves(node):
        node = _source(node)
    return node
