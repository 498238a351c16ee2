"""Layers whose single weights can be pruned: linear layers and convolutions that store their weight."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError, ConfigError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of
from lighten.graph.groups import matches

aten = torch.ops.aten

CONVOLUTIONS: dict[Any, int] = {  # operator -> spatial axes
    **dict.fromkeys([aten.conv1d.default, aten.conv1d.padding], 1),
    **dict.fromkeys([aten.conv2d.default, aten.conv2d.padding], 2),
    **dict.fromkeys([aten.conv3d.default, aten.conv3d.padding], 3),
}
READERS = {aten.linear.default, *CONVOLUTIONS}


@dataclass(frozen=True)
class WeightLayer:
    """A stored weight [out, in, *kernel] and every node that computes with it (several where it is shared)."""

    name: str
    parameter: str
    nodes: tuple[fx.Node, ...]

    @property
    def groups(self) -> int:
        """Of the convolution; 1 for a linear layer."""
        return int(arguments(self.nodes[0]).get("groups", 1))


def is_depthwise(captured: CapturedModule, layer: WeightLayer) -> bool:
    """Whether each output reads one channel alone."""
    return layer.groups > 1 and captured.get_parameter(layer.parameter).shape[1] == 1


def find_layers(captured: CapturedModule, exclude: Iterable[str] = ()) -> tuple[list[WeightLayer], dict[str, str]]:
    """The layers to prune in the order of the graph, and what is left alone with the reason.

    exclude: shell patterns over layer names.

    Raises:
        ConfigError: a weight is not floating point, or the module is quantized.
    """
    exclude = tuple(exclude)
    refuse_quantized(captured)
    readers: dict[int, list[fx.Node]] = {}  # by the identity of the parameter: a tied weight has several names
    names: dict[int, str] = {}
    skipped: dict[str, str] = {}
    for node in captured.graph.nodes:
        if node.op != "get_attr" or not isinstance(_value(captured, node), torch.nn.Parameter):
            continue
        weight = get_tensor(captured, str(node.target))
        for user in node.users:
            if user.target in READERS and arguments(user)["weight"] is node:
                readers.setdefault(id(weight), []).append(user)
                names.setdefault(id(weight), str(node.target))
            elif weight.ndim > 1:
                name = str(node.target).rpartition(".")[0] or str(node.target)
                skipped[name] = f"not pruned: its weight is read by {user.target}, not a linear layer or convolution"
    for node in captured.graph.nodes:
        if node.target in READERS and arguments(node)["weight"].op != "get_attr":
            skipped[layer_of(node)] = "not pruned: its weight is computed, not stored"
        elif node.target in READERS and id(_value(captured, arguments(node)["weight"])) not in readers:
            skipped[layer_of(node)] = "not pruned: its weight is a buffer, not a parameter"
    layers = []
    for key, nodes in readers.items():
        parameter = names[key]
        name = parameter.rpartition(".")[0] or parameter
        weight = get_tensor(captured, parameter)
        if matches(name, exclude) or any(matches(layer_of(node), exclude) for node in nodes):
            skipped[name] = "not pruned: excluded"
        elif name in skipped:
            continue  # also used otherwise, where a zero may not mean what it means here
        elif not weight.is_floating_point():
            raise ConfigError(
                f"The weight of layer '{name}' is {weight.dtype}. Only floating-point weights are pruned."
            )
        else:
            layers.append(WeightLayer(name, parameter, tuple(nodes)))
    return layers, skipped


def refuse_quantized(captured: CapturedModule) -> None:
    """Raise ConfigError where the weights are codes already."""
    if captured.plan.scheme is not None:
        raise ConfigError(
            f"The model is quantized already, to {captured.plan.scheme}: its weights are integer codes. Prune the "
            "float model, then quantize."
        )


def check_finite(layer: str, weight: Tensor) -> None:
    """Raise CaptureError where a weight is NaN or infinite: it cannot be ranked."""
    if not weight.isfinite().all():
        raise CaptureError(f"The weight of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")


def _value(captured: CapturedModule, node: fx.Node) -> Tensor | None:
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(captured.get_submodule(owner), leaf, None)
