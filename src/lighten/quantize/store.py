"""Store: put the parts of a quantized tensor, and the operator that gives it back, in the place of a parameter."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from lighten.graph.capture import CapturedModule, layer_of


def replace_parameter_(
    captured: CapturedModule,
    parameter: fx.Node,
    operator: Callable[..., Any],
    parts: Mapping[str, Tensor | None],
    rest: tuple[Any, ...] = (),
) -> fx.Node:
    """Everyone who read parameter reads operator(*parts, *rest), which is returned.

    parts: become buffers beside the parameter, named after it and their key; None stays None.
    """
    owner_name, _, leaf = str(parameter.target).rpartition(".")
    owner = captured.get_submodule(owner_name)
    delattr(owner, leaf)
    graph = captured.graph
    nodes: list[fx.Node | None] = []
    with graph.inserting_before(parameter):
        for part, value in parts.items():
            if value is None:
                nodes.append(None)
                continue
            name = register(owner, f"{leaf}_{part}", value)
            nodes.append(graph.get_attr(f"{owner_name}.{name}".lstrip(".")))
        stored = graph.call_function(operator, (*nodes, *rest))
    for node in (*nodes, stored):
        if node is not None:
            node.meta = {**parameter.meta, "layer": layer_of(parameter)}
    parameter.replace_all_uses_with(stored)
    graph.erase_node(parameter)
    return stored


def register(owner: nn.Module, name: str, value: Tensor) -> str:
    """Make value a buffer of owner, under name or, where the author has taken it, the next free one."""
    while hasattr(owner, name):
        name += "_"
    owner.register_buffer(name, value)
    return name
