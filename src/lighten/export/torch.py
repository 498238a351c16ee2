"""From a module to an ATen graph of pure operators, for the runtime `torch`."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lighten.errors import CaptureError, ConfigError
from lighten.graph.capture import TRAINING_FLAG, CapturedModule, capture, with_batch_of_two
from lighten.graph.fold import fold_batch_norm_
from lighten.runtime.spec import BATCH, TensorSpec


def to_torch(
    captured: CapturedModule, example_inputs: tuple[Any, ...], decompositions: Mapping[Any, Any] | None = None
) -> tuple[fx.GraphModule, list[TensorSpec], list[TensorSpec]]:
    """The computation in eval mode, batch norm folded, as a graph for save_graph; and its inputs and outputs.

    decompositions: how torch.export takes apart the operators that the graph is to be without. Inputs are named as in
    forward(), outputs output, output_1, …; numbers and None among them became constants.

    Raises:
        CaptureError: the graph cannot be made free of in-place operators, or a tensor has a type that no array has.
    """
    captured = capture(captured, example_inputs)
    fold_batch_norm_(captured)
    _drop_dropout_(captured)
    captured.requires_grad_(False)
    module = _without_writes(captured, example_inputs, decompositions or {})
    for node in reversed(module.graph.nodes):  # the checks of inputs before the inputs
        if node.op == "call_module" or (node.op == "placeholder" and not _is_tensor(node)):
            if node.users:
                raise CaptureError(f"The input '{node.name}' is no tensor, but the graph still reads it. Make it one.")
            module.graph.erase_node(node)
    returned = [leaf for leaf in pytree.tree_leaves(module.graph.output_node().args[0]) if _is_tensor(leaf)]
    module.graph.output_node().args = (tuple(returned),)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    symbols = batch_symbols(inputs) if captured.batch_is_dynamic else re.compile("(?!)")
    names = [f"output_{i}" if i else "output" for i in range(len(returned))]
    return (
        module,
        [spec_of(node.name, node, symbols) for node in inputs],
        [spec_of(name, node, symbols) for name, node in zip(names, returned, strict=True)],
    )


def _drop_dropout_(captured: CapturedModule) -> None:
    """In eval mode it does nothing, but as a pure operator it becomes a copy."""
    for node in list(captured.graph.nodes):
        if node.op == "call_function" and node.target in TRAINING_FLAG and "dropout" in str(node.target):
            node.replace_all_uses_with(node.args[0])
            captured.graph.erase_node(node)
    captured.recompile()


def _without_writes(
    captured: CapturedModule, example_inputs: tuple[Any, ...], decompositions: Mapping[Any, Any]
) -> fx.GraphModule:
    """captured, with writes into views as pure operators: torch.export calls that a decomposition, even of nothing."""
    inputs, dynamic_shapes = example_inputs, None
    if captured.batch_is_dynamic:
        inputs = with_batch_of_two(example_inputs)
        free = torch.export.Dim.DYNAMIC
        dynamic_shapes = pytree.tree_map(lambda x: {0: free} if isinstance(x, Tensor) and x.ndim else None, inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(captured, inputs, dynamic_shapes=dynamic_shapes).run_decompositions(
                dict(decompositions)
            )
            module = program.module()
    except Exception as error:
        said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CaptureError(
            f"The model has no graph of pure operators: {said}. Export to onnxruntime instead."
        ) from error
    assert isinstance(module, fx.GraphModule)
    return module


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def batch_symbols(inputs: Sequence[fx.Node]) -> re.Pattern[str]:
    """Whatever torch.export called the free first axis of the inputs."""
    symbols = {str(node.meta["val"].shape[0]) for node in inputs if node.meta["val"].ndim}
    return re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in sorted(symbols)) or "(?!)")


def spec_of(name: str, node: fx.Node, symbols: re.Pattern[str]) -> TensorSpec:
    """Of the tensor that node makes.

    Raises:
        CaptureError: no array has its type.
    """
    value: Tensor = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else symbols.sub(BATCH, str(size)) for size in value.shape)
    try:
        return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)
    except ConfigError as error:
        raise CaptureError(f"The model cannot be exported: {error}") from error
