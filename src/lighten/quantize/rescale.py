"""Rescale: divide the channels of an activation by factors, without an operation at run time where that is possible.

What makes the activation takes the division over: the rows of a linear layer's or a convolution's weight, and its bias;
a layer norm's weight and bias; through a ReLU, a pooling or a dropout, which commute with positive factors. Whoever
reads the activation multiplies its weight's columns by the same factors, and the function of the network stays as it
is, but for the rounding of each product.
"""

import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of, set_tensor_
from lighten.quantize.placement import CONVOLUTIONS, aten, pads_with_zeros, upper_clip
from lighten.quantize.store import register

_ELEMENTWISE = {aten.relu.default, aten.leaky_relu.default, aten.dropout.default}
_POOLING = {  # over what comes after the channels of a convolution; a linear layer's channels come last
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default),
    aten.adaptive_avg_pool2d.default,
}
_SCALABLE = CONVOLUTIONS | {aten.linear.default, aten.layer_norm.default}


def maker_of(
    captured: CapturedModule, node: fx.Node, *, only_reader: bool = True, clipped: bool = False
) -> fx.Node | None:
    """The operator whose weight and bias can take over a division of node's channels; None = there is none.

    Its weight is its own, and from it to node nobody else reads. only_reader: neither do several read node itself.
    clipped: relu6 may stand between, though it commutes with factors only if its upper end is divided as well.
    """
    if only_reader and len(node.users) != 1:
        return None
    pooled = False
    while _passes(node, clipped) and len(node.all_input_nodes[0].users) == 1:
        pooled |= node.target in _POOLING or pads_with_zeros(node)
        node = node.all_input_nodes[0]
    if node.target not in (CONVOLUTIONS if pooled else _SCALABLE):
        return None
    given = arguments(node)
    parameters = [given["weight"], *([given["bias"]] if given["bias"] is not None else [])]
    if not all(isinstance(p, fx.Node) and p.op == "get_attr" and len(p.users) == 1 for p in parameters):
        return None
    if node.target == aten.layer_norm.default and get_tensor(captured, str(given["weight"].target)).ndim != 1:
        return None
    return node


def _passes(node: fx.Node, clipped: bool) -> bool:
    passing = node.target in _ELEMENTWISE | _POOLING or pads_with_zeros(node)
    return passing or (clipped and upper_clip(node) is not None)


def divide_output_(captured: CapturedModule, maker: fx.Node, factors: Tensor) -> None:
    """Divide the output channels of maker (see maker_of) by factors [channels] > 0, in place."""
    given = arguments(maker)
    for key in ("weight", "bias"):
        if given[key] is not None:
            name = str(given[key].target)
            value = get_tensor(captured, name).detach()
            set_tensor_(captured, name, value / factors.to(value).view(-1, *[1] * (value.ndim - 1)))


def divide_input_(captured: CapturedModule, reader: fx.Node, factors: Tensor) -> None:
    """Let reader, a linear layer, read its input divided by factors [inputs] > 0, in place."""
    source = arguments(reader)["input"]
    maker = maker_of(captured, source)
    if maker is not None:
        divide_output_(captured, maker, factors)
        return
    name = register(captured, f"{reader.name}_input_factors", factors)
    with captured.graph.inserting_before(reader):
        divisor = captured.graph.get_attr(name)
        divided = captured.graph.call_function(torch.ops.aten.div.Tensor, (source, divisor))
    divisor.meta = divided.meta = {"layer": layer_of(reader)}
    reader.replace_input_with(source, divided)


def multiply_input_(captured: CapturedModule, reader: fx.Node, factors: Tensor) -> None:
    """Multiply what reader's weight, its own, does with each input channel by factors [channels] > 0, in place."""
    name = str(arguments(reader)["weight"].target)
    weight = get_tensor(captured, name).detach()
    split = per_input(reader, weight)
    scaled = split * factors.to(weight).view(split.shape[0], 1, split.shape[2], 1)
    set_tensor_(captured, name, scaled.reshape(weight.shape))


def per_input(layer: fx.Node, weight: Tensor) -> Tensor:
    """weight [out, in / groups, …] as [groups, out / groups, in / groups, kernel]."""
    groups = arguments(layer).get("groups", 1)
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
