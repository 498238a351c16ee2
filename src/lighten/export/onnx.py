"""From a module, float or quantized, to an ONNX model that holds nothing but the computation."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.errors import CaptureError
from lighten.graph.capture import CapturedModule, capture, layer_of, with_batch_of_two
from lighten.graph.fold import fold_batch_norm_
from lighten.quantize.ops import onnx_translations
from lighten.runtime.spec import BATCH, TensorSpec

OPSET = 20


def to_onnx(model: nn.Module, example_inputs: tuple[Any, ...]) -> onnx.ModelProto:
    """The computation of model in eval mode, batch norm folded; the batch axis is free where the model allows it.

    example_inputs: positional arguments of model. Inputs are named as in forward(); outputs output, output_1, ….

    Raises:
        CaptureError: the model cannot be traced, or an operator has no ONNX counterpart (named in the message).
    """
    captured = capture(model, example_inputs)
    fold_batch_norm_(captured)
    captured.requires_grad_(False)
    names = [node.name for node in captured.graph.nodes if node.op == "placeholder"]
    exported = _export(captured, example_inputs)
    proto: onnx.ModelProto = exported.model_proto
    _strip(proto)
    _rename(proto, names, captured.batch_is_dynamic)
    return proto


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
            program = torch.onnx.export(
                captured,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
    except Exception as error:
        raise CaptureError(_why_not(captured, error)) from error
    assert program is not None
    return program


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
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    culprits = [n for n in captured.graph.nodes if n.op == "call_function" and str(n.target) in str(error)]
    where = f" It stands in layer '{layer_of(culprits[0])}'." if culprits and layer_of(culprits[0]) else ""
    return (
        f"The model cannot be exported to ONNX: {said}{where} Replace the operator named here, or use runtime='torch'."
    )


def _strip(proto: onnx.ModelProto) -> None:
    """Drop source lines, names of Python objects and inner shapes: the file is shipped, and its size is measured."""
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        node.name = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]


def _rename(proto: onnx.ModelProto, inputs: list[str], batch_is_dynamic: bool) -> None:
    """Give inputs and outputs their names, and the free axis the name that the manifest uses."""
    outputs = [f"output_{i}" if i else "output" for i in range(len(proto.graph.output))]
    old = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    new = dict(zip(old, [*inputs, *outputs], strict=True))
    # An inner tensor may already bear a name that is about to be given away.
    taken = {name: f"inner_{name}" for node in proto.graph.node for name in node.output} | {
        tensor.name: f"inner_{tensor.name}" for tensor in proto.graph.initializer
    }
    renamed = {name: inner for name, inner in taken.items() if name in new.values() and name not in new} | new
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = renamed.get(value.name, value.name)
    if batch_is_dynamic:
        for value in (*proto.graph.input, *proto.graph.output):
            for dim in value.type.tensor_type.shape.dim[:1]:
                if dim.dim_param:
                    dim.dim_param = BATCH
