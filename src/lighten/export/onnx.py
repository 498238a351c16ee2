"""From a module, float or quantized, to an ONNX model that holds nothing but the computation."""

import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from onnxscript import FLOAT, opset20
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.errors import CaptureError
from lighten.graph.capture import CapturedModule, capture, layer_of, placeholder_values, with_batch_of_two
from lighten.graph.fold import fold_batch_norm_
from lighten.quantize import dynamic, matmul_nbits, ops, weight_ops
from lighten.quantize.matmul_nbits import use_matmul_nbits_
from lighten.runtime.spec import BATCH, TensorSpec

OPSET = 20


def to_onnx(model: nn.Module, example_inputs: tuple[Any, ...], *, standard: bool = False) -> onnx.ModelProto:
    """The computation of model in eval mode, batch norm folded; the batch axis is free where the model allows it.

    example_inputs: positional arguments of model. Inputs are named as in forward(); outputs output, output_1, ….
    standard: only operators of ONNX itself, where ONNX Runtime's own would be faster.

    Raises:
        CaptureError: the model cannot be traced, an operator has no ONNX counterpart (named in the message), or the
        model computes in a type that the runtimes do not.
    """
    _must_have_kernels(model, example_inputs)
    captured = capture(model, example_inputs)
    fold_batch_norm_(captured)
    captured.requires_grad_(False)
    weight_ops.widen_scales_(captured)
    if not standard:
        use_matmul_nbits_(captured)
    proto: onnx.ModelProto = _export(captured, example_inputs).model_proto
    _strip(proto)
    _give_outputs_their_own_names(proto.graph)
    _rename(proto, list(named_inputs(captured, example_inputs)))
    if captured.batch_is_dynamic:
        _name_batch_axis(proto.graph)
    return proto


def named_inputs(captured: CapturedModule, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The tensors in inputs by the name that they have in the exported model; numbers and None became constants."""
    names = [node.name for node in captured.graph.nodes if node.op == "placeholder"]
    values = placeholder_values(captured, inputs)
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, Tensor)}


def tensor_specs(proto: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Names, dtypes and shapes of the model's inputs and of its outputs."""

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))

    return [spec(value) for value in proto.graph.input], [spec(value) for value in proto.graph.output]


def _export(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> Any:
    inputs, dynamic_shapes = example_inputs, None
    if captured.batch_is_dynamic:
        inputs = with_batch_of_two(example_inputs)
        free = torch.export.Dim.DYNAMIC
        dynamic_shapes = pytree.tree_map(lambda x: {0: free} if isinstance(x, Tensor) and x.ndim else None, inputs)
    try:
        # The exporter reports on the terminal what only its authors can use.
        with _quiet():
            traced = torch.export.export(captured, inputs, dynamic_shapes=dynamic_shapes)
            # A program, because of a module's inputs the exporter takes a last dict for keyword arguments.
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=_translations(),
                optimize=False,
                verbose=False,
            )
            assert program is not None
            stored = weight_ops.stored_names(captured)
            optimize_ir(program.model, should_fold=lambda node: None if _is_free_of(node, stored) else False)
    except Exception as error:
        raise CaptureError(_why_not(captured, error)) from error
    return program


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    return {
        **ops.onnx_translations(),
        **weight_ops.onnx_translations(),
        **matmul_nbits.onnx_translations(),
        **dynamic.onnx_translations(),
        torch.ops.aten._adaptive_avg_pool3d.default: _adaptive_average_pool,
    }


def _adaptive_average_pool(x: FLOAT, output_size: Sequence[int]) -> Any:
    """An operator the exporter lacks, where all windows are equal: with sizes that divide, a plain average pool."""
    assert x.shape is not None
    sizes = [int(size) for size in x.shape[-len(output_size) :]]
    if any(size % out for size, out in zip(sizes, output_size, strict=True)):
        raise ValueError(f"adaptive pooling of {sizes} to {list(output_size)} has windows of several sizes")
    windows = [size // out for size, out in zip(sizes, output_size, strict=True)]
    op: Any = opset20  # its stubs know fewer types than its operators
    return op.AveragePool(x, kernel_shape=windows, strides=windows)


def _is_free_of(node: Any, stored: set[str]) -> bool:
    """Whether node reads none of these tensors: computed out they would be as large as the floats they stand for."""
    return not any(value is not None and value.name in stored for value in node.inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _why_not(captured: CapturedModule, error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__).rstrip(".")
    culprits = [n for n in captured.graph.nodes if n.op == "call_function" and str(n.target) in str(error)]
    where = f" It stands in layer '{layer_of(culprits[0])}'." if culprits and layer_of(culprits[0]) else ""
    return f"The model cannot be exported to ONNX: {said}.{where} Replace the operator named here by others."


def _must_have_kernels(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    given = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    for dtype in {x.dtype for x in (*model.parameters(), *model.buffers(), *given)} & {torch.float64, torch.bfloat16}:
        raise CaptureError(
            f"The model or its input is {dtype}, which runtimes have too few CPU kernels for. Export model.float(), "
            "with inputs converted by .float()."
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """graph, and the bodies of the branches and loops in it."""
    yield graph
    for attribute in itertools.chain.from_iterable(node.attribute for node in graph.node):
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(body)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop source lines, names of Python objects and inner shapes: the file is shipped, and its size is measured."""
    for graph in _graphs(proto.graph):
        del graph.value_info[:]
        for node in graph.node:
            node.ClearField("name")
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")


def _give_outputs_their_own_names(graph: onnx.GraphProto) -> None:
    """An output that is an input, a constant or another output as well is copied: names in a file are unique."""
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    for index, output in enumerate(graph.output):
        if output.name in taken:
            copied = f"{output.name}_as_output_{index}"
            graph.node.append(onnx.helper.make_node("Identity", [output.name], [copied]))
            output.name = copied
        taken.add(output.name)


def _rename(proto: onnx.ModelProto, inputs: list[str]) -> None:
    """Give inputs and outputs their names; an inner tensor that bears one of them already makes way."""
    graphs = list(_graphs(proto.graph))
    outer = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    inner = {value.name for graph in graphs for value in (*graph.initializer, *graph.input, *graph.output)}
    inner |= {name for graph in graphs for node in graph.node for name in node.output}
    outputs = _free_names("output", len(proto.graph.output), set(inputs))
    renamed = dict(zip(outer, [*inputs, *outputs], strict=True))
    taken = inner | set(renamed.values())
    for name in sorted(inner & set(renamed.values()) - set(outer)):
        (renamed[name],) = _free_names(f"{name}_inner", 1, taken)
    for graph in graphs:
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = renamed.get(value.name, value.name)


def _free_names(stem: str, count: int, taken: set[str]) -> list[str]:
    """stem, stem_1, stem_2, … without those that are taken."""
    numbered = (f"{stem}_{i}" if i else stem for i in itertools.count())
    return list(itertools.islice((name for name in numbered if name not in taken), count))


def _name_batch_axis(graph: onnx.GraphProto) -> None:
    """Call the free first axis of every input what the manifest calls it, wherever its size occurs ("3*batch" too)."""
    axes = [value.type.tensor_type.shape.dim for value in graph.input]
    symbols = {dims[0].dim_param for dims in axes if dims and dims[0].dim_param}
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in sorted(symbols)) or r"(?!)")
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(BATCH, dim.dim_param)
