"""Arguments of an ATen node by the names of its schema, defaults filled in."""

from typing import Any

from torch import fx
from torch._ops import OpOverload


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of the node by name; those not given have their default."""
    if not isinstance(node.target, OpOverload):
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    schema = node.target._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {**defaults, **given, **node.kwargs}


def set_argument_(node: fx.Node, name: str, value: Any) -> None:
    """Give the node another value for the argument of that name."""
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    index = names.index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)
