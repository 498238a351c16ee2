"""From a module to the program of the native engine, or to its parts where the engine cannot compute it alone."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from lighten.errors import CaptureError
from lighten.export.native import attention, axes, operators, products, reductions
from lighten.export.native.divide import MEASURED, HandOver, Write
from lighten.export.native.mixed import to_parts
from lighten.export.native.reader import LIKE, MOVES, Reader, RefusalError
from lighten.export.native.unread import without_unread
from lighten.export.onnx import named_inputs
from lighten.export.torch import to_torch
from lighten.graph.capture import CapturedModule
from lighten.runtime.native import save_program
from lighten.runtime.native.packed import FLOAT_BITS
from lighten.runtime.spec import TensorSpec

aten = torch.ops.aten
# Refused by these names. A recurrent layer taken apart into its steps takes 1.4 to 3 times as long as in ONNX Runtime.
WHOLE = {
    *(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input),
    *(aten.conv3d.default, aten.conv_transpose3d.input),
}
FILES = (operators, reductions, attention, axes, products)
HANDLERS = {target: handler for file in FILES for target, handler in file.HANDLERS.items()}


def to_native(
    captured: CapturedModule,
    example_inputs: tuple[Any, ...],
    bits: int = FLOAT_BITS,
    hand_over: HandOver = MEASURED,
) -> tuple[Callable[[Path], None], list[TensorSpec], list[TensorSpec], Mapping[str, Any]]:
    """What writes the files of the program into a folder, its inputs and outputs, and notes for the manifest.

    An operator that the engine does not have runs in ONNX Runtime, and the notes list the parts. hand_over: what it
    costs to pass from one to the other.

    bits: of a weight's value that is a float, FLOAT_BITS or BFLOAT_BITS.

    Raises:
        CaptureError: an operator that the engine does not have, by name, where too little is left for the engine
        without it; or a batch axis that is not free.
    """
    module, inputs, outputs = to_torch(captured, example_inputs, other_decompositions({*HANDLERS, *MOVES, *LIKE}))
    if not captured.batch_is_dynamic:
        raise CaptureError("The native engine needs a free batch axis, and this model's is fixed. Use onnxruntime.")
    read = partial(read_program, bits=bits)
    try:
        write = read(module)
    except RefusalError as refusal:
        by_name = named_inputs(captured, example_inputs)
        try:
            write_files, notes = to_parts(module, [by_name[spec.name] for spec in inputs], read, hand_over)
        except CaptureError as error:
            raise CaptureError(f"{refusal} {error}") from error
        return write_files, inputs, outputs, {"parts": notes}
    return lambda folder: write(folder, ""), inputs, outputs, {}


def read_program(module: fx.GraphModule, bits: int = FLOAT_BITS) -> Write:
    """What writes the program that module is. bits: see to_native.

    Raises:
        RefusalError: an operator that the engine does not have.
    """
    reader = Reader(module, HANDLERS, bits)
    program, stored = without_unread(reader.read(), reader.build.stored)

    def write(folder: Path, prefix: str) -> None:
        save_program(program, stored, folder, prefix)

    return write


def other_decompositions(known: set[Any]) -> dict[Any, Any]:
    """How torch takes apart the operators that are neither known nor better left to another runtime."""
    table = torch.export.default_decompositions()
    for operator in known | WHOLE:
        if isinstance(operator, torch._ops.OpOverload):
            table.pop(operator, None)
    return dict(table)
