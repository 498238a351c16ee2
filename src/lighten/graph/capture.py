"""Capture: from any module to an editable ATen graph that still trains.

`torch.export` records the forward pass before any decomposition, so the graph keeps the operators that the author
wrote (conv2d, batch_norm, view, …) and the parameters keep their names. Three things are missing from what it returns,
and are added here: train() and eval() work, the graph is free of in-place operators, and each node knows the layer it
came from.
"""

import copy
import io
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from lighten.errors import CaptureError
from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.inline import inline_regions_
from lighten.graph.tensors import canonical_names as canonical_names
from lighten.graph.tensors import get_tensor as get_tensor
from lighten.graph.tensors import set_tensor_ as set_tensor_
from lighten.plan import Plan

aten = torch.ops.aten

# The argument that tells an operator whether it is training.
TRAINING_FLAG = {
    aten.batch_norm.default: "training",
    aten.dropout.default: "train",
    aten.feature_dropout.default: "train",
    aten.alpha_dropout.default: "train",
    aten.lstm.input: "train",
    aten.gru.input: "train",
    aten.rnn_tanh.input: "train",
    aten.rnn_relu.input: "train",
}


class CapturedModule(fx.GraphModule):
    """An ordinary module whose forward is an editable graph.

    It runs, trains, deep-copies and exports like the module it came from; parameters keep their names. `plan` says what
    has been done to it so far. `batch_is_dynamic` is False where the model only traces at the batch size it was
    shown.
    """

    plan: Plan
    batch_is_dynamic: bool

    def train(self, mode: bool = True) -> "CapturedModule":
        """Switch dropout and batch norm as on the original module."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            flag = TRAINING_FLAG.get(node.target)
            if flag is not None and not node.meta.get("always_trains") and arguments(node)[flag] is not mode:
                set_argument_(node, flag, mode)
                changed = True
        if changed:
            self.recompile()
        return self

    def eval(self) -> "CapturedModule":
        """Switch to inference."""
        return self.train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        with warnings.catch_warnings():  # torch's own copying of its tree specs is deprecated by torch
            warnings.simplefilter("ignore", FutureWarning)
            copied: CapturedModule = super().__deepcopy__(memo)  # type: ignore[assignment]
        copied.plan, copied.batch_is_dynamic = self.plan, self.batch_is_dynamic
        for (_, old), (_, new) in zip(self.named_parameters(), copied.named_parameters(), strict=True):
            new.requires_grad_(old.requires_grad)
        return copied


def capture(model: nn.Module, example_inputs: tuple[Any, ...]) -> CapturedModule:
    """Trace model, in eval mode, on a copy of its own; model is not modified.

    example_inputs: positional arguments; every tensor in them has the batch as its first axis where they all agree on
    its size. The captured graph then takes any batch size; where the model does not allow that, `batch_is_dynamic` is
    False.

    Raises:
        CaptureError: torch.export cannot trace the model; the message names the line.
    """
    if isinstance(model, CapturedModule):
        copied = _copy(model)
        assert isinstance(copied, CapturedModule)
        return copied.eval()
    program, dynamic = _export(_copy(model).eval(), example_inputs)
    exported = program.module()
    assert isinstance(exported, fx.GraphModule)
    captured = CapturedModule(exported, exported.graph)
    captured.plan, captured.batch_is_dynamic = Plan(), dynamic
    inline_regions_(captured)
    _drop_guards(captured)
    _replace_in_place_operators(captured.graph)
    _keep_only_origin(captured)
    captured.graph.eliminate_dead_code()
    captured.recompile()
    return captured.eval()


def layer_of(node: fx.Node) -> str:
    """The module path that node was traced from, '' for the top level."""
    return str(node.meta.get("layer", ""))


def placeholder_values(captured: CapturedModule, inputs: tuple[Any, ...]) -> list[Any]:
    """The leaves of inputs in the order of the graph's placeholders, whatever the order of the keys of a dict.

    Raises:
        ValueError: there are more inputs, or fewer, than the model takes.
    """
    takes = captured._in_spec.child(0).num_children
    if len(inputs) != takes:
        raise ValueError(f"it has {len(inputs)} inputs, and the model takes {takes}")
    values: list[Any] = fx_pytree.tree_flatten_spec((inputs, {}), captured._in_spec)
    return values


def with_batch_of_two(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """inputs with a batch of one repeated: a size of 1 would be taken for a constant of the model."""
    sizes = _batch_sizes(inputs)
    if sizes != {1}:
        return inputs
    return _map_tensors(inputs, lambda x: torch.cat([x, x]))


def _map_tensors(inputs: tuple[Any, ...], function: Callable[[Tensor], Any]) -> tuple[Any, ...]:
    mapped = pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) and x.ndim else x, inputs)
    assert isinstance(mapped, tuple)
    return mapped


def _batch_sizes(inputs: tuple[Any, ...]) -> set[int]:
    return {x.shape[0] for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim}


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            f"Cannot copy {type(model).__name__}: {error}. lighten never modifies the model it is given, so it must be "
            "deep-copyable; remove hooks and handles that are not."
        ) from error


def _export(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.export.ExportedProgram, bool]:
    """The exported program, and whether its batch axis is free."""
    if len(_batch_sizes(inputs)) == 1:
        try:
            program = _quiet_export(model, with_batch_of_two(inputs), _batch_axis(inputs))
            with torch.no_grad():  # a size that the author wrote out may only show at another batch size
                program.module()(*_map_tensors(inputs, lambda x: torch.cat([x[:1]] * 3)))
            return program, True
        except Exception:  # noqa: BLE001  torch.export raises dozens of types
            # The model may still trace at its own batch size; only if that fails too is it an error.
            pass
    try:
        return _quiet_export(model, inputs, None), False
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced by torch.export: {_first_line(error)}"
            f"{_user_line(error)} Python branches on tensor values, printing of tensors and calls of other libraries "
            "are the usual causes: move them out of forward(), or use torch.where / torch.cond."
        ) from error


def _quiet_export(model: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """torch prints the graph of a failed trace before raising; the error that we raise says it in one line."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operators can be neither pruned nor exported
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # on the flat weights of nn.LSTM, say: of no use to who did not write it
            return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _batch_axis(inputs: tuple[Any, ...]) -> Any:
    auto = torch.export.Dim.AUTO
    return pytree.tree_map(lambda x: {0: auto} if isinstance(x, Tensor) and x.ndim else None, inputs)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def _user_line(error: Exception) -> str:
    """Where in the model's own source the trace stopped, if the traceback reaches it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name == "forward" and "/torch/" not in frame.filename.replace("\\", "/")
    ]
    if not frames:
        return ""
    return f" At {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}."


def _drop_guards(captured: CapturedModule) -> None:
    """Remove the checks that torch.export adds: they pin the sizes that pruning is about to change."""
    for node in list(captured.graph.nodes):
        if node.target == aten._assert_tensor_metadata.default:
            captured.graph.erase_node(node)
        if node.op == "call_module" and node.target == "_guards_fn":
            captured.graph.erase_node(node)
            captured.delete_submodule("_guards_fn")


def _replace_in_place_operators(graph: fx.Graph) -> None:
    """relu_(x) becomes relu(x), read by all that comes later, where nothing else that comes later shares x's memory."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        packet, overload = node.target._schema.name.split("::")[1], node.target._overloadname
        if not packet.endswith("_") or packet.endswith("__"):
            continue
        pure = getattr(getattr(aten, packet[:-1], None), overload, None)
        written = node.args[0]
        if pure is None or not isinstance(written, fx.Node):
            continue
        later, shared = set(_nodes_after(node)), _sharing_memory(written, node)
        if any(n.op in ("placeholder", "get_attr") for n in shared) or any(
            user in later for n in shared - {written} for user in n.users
        ):
            continue
        node.target = pure
        written.replace_all_uses_with(node, later.__contains__)


def _nodes_after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def _sharing_memory(node: fx.Node, writer: fx.Node) -> set[fx.Node]:
    """The nodes that node is a view of, those that are views of it or of them, and node; not what writer returns."""
    while _may_return_its_input(node):
        node = node.all_input_nodes[0]
    found, open_ = {node}, [node]
    while open_:
        for user in open_.pop().users:
            if user is not writer and user not in found and _may_return_its_input(user):
                found.add(user)
                open_.append(user)
    return found


def _may_return_its_input(node: fx.Node) -> bool:
    """True for views, for in-place operators, and for what does nothing in eval mode."""
    if node.target is operator.getitem or "dropout" in str(node.target):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _keep_only_origin(captured: CapturedModule) -> None:
    """Of the trace's records keep the layer's path and the source line: the rest is stale once sizes change."""
    for node in captured.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        if node.op == "get_attr":
            path = str(node.target).rpartition(".")[0]
        node.meta = {"layer": path, "line": node.meta.get("stack_trace", ""), "always_trains": _always_trains(node)}


def _always_trains(node: fx.Node) -> bool:
    """True for what trains although the model was traced in eval mode: statistics of weights by F.batch_norm, say."""
    flag = TRAINING_FLAG.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else None
    return flag is not None and arguments(node)[flag] is True
