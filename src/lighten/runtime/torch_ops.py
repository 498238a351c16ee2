"""The operators that a stored graph may name: pure functions of torch.ops.aten, and integer arithmetic on sizes.

A name decides what runs, so not every one will do: no operator that changes its arguments, that takes a file name, a
stream or an arbitrary object (aten.from_file opens files), or that is private to PyTorch, a short list aside.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch

_SIZE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (*("getitem", "add", "sub", "mul", "floordiv", "mod", "neg"), *("eq", "ne", "lt", "le", "gt", "ge"))
}
NAME_OF_FUNCTION = {function: name for name, function in _SIZE_FUNCTIONS.items()}
_PLAIN_TYPES = {"Tensor", "int", "float", "bool", "number", "Device"}
_TEXT_ARGUMENTS = {
    *("approximate", "equation", "indexing", "norm", "pad_mode", "padding", "padding_side", "reduce", "rounding_mode"),
    *("ord", "side"),
}
_PRIVATE = {
    *("_log_softmax", "_native_batch_norm_legit_no_training", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_softmax", "_to_copy", "_unsafe_view", "_weight_int4pack_mm_for_cpu", "_weight_int8pack_mm", "_int_mm"),
}


def resolve(name: str) -> Callable[..., Any]:
    """The function of a name such as "aten.conv2d.default" or "operator.getitem".

    Raises:
        ValueError: it is not allowed, or not there.
    """
    namespace, _, rest = name.partition(".")
    if namespace == "operator" and rest in _SIZE_FUNCTIONS:
        return _SIZE_FUNCTIONS[rest]
    packet_name, _, overload = rest.partition(".")
    if namespace != "aten" or not packet_name.isidentifier() or not overload.isidentifier():
        raise ValueError(f"'{name}' is not an ATen operator")
    function = getattr(getattr(torch.ops.aten, packet_name, None), overload, None)
    if not isinstance(function, torch._ops.OpOverload):
        raise ValueError(f"PyTorch {torch.__version__} has no operator '{name}'")
    if reason := _why_not(packet_name, function._schema):
        raise ValueError(f"'{name}' {reason}, which an artifact may not use")
    return function


def _why_not(name: str, schema: Any) -> str:
    """What is wrong with an operator, or ""."""
    if name.startswith("_") and name not in _PRIVATE:
        return "is private"
    if schema.is_mutable:
        return "changes its arguments"
    if not schema.returns:
        return "returns nothing"
    for argument in schema.arguments:
        kind = str(argument.type)
        for wrapper in ("Optional[", "List["):
            kind = kind.replace(wrapper, "")
        kind = kind.rstrip("]")
        # A generator may stay at its default, None: there is no way to write one down.
        if kind not in _PLAIN_TYPES | {"Generator"} and not (kind == "str" and argument.name in _TEXT_ARGUMENTS):
            return f"takes a {kind} '{argument.name}'"
    return ""
