"""From a module to the program of the native engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from lighten.errors import CaptureError
from lighten.export.native import operators, products
from lighten.export.native.reader import Reader
from lighten.export.torch import to_torch
from lighten.graph.capture import CapturedModule
from lighten.runtime.native import PLAN, WEIGHTS
from lighten.runtime.native.stored import to_arrays
from lighten.runtime.spec import TensorSpec


def to_native(
    captured: CapturedModule, example_inputs: tuple[Any, ...]
) -> tuple[Callable[[Path], None], list[TensorSpec], list[TensorSpec]]:
    """What writes the files of the program into a folder, and its inputs and outputs.

    Raises:
        CaptureError: an operator that the engine does not have, by name, or a batch axis that is not free.
    """
    module, inputs, outputs = to_torch(captured, example_inputs)
    if not captured.batch_is_dynamic:
        raise CaptureError("The native engine needs a free batch axis, and this model's is fixed. Use onnxruntime.")
    reader = Reader(module, {**operators.HANDLERS, **products.HANDLERS})
    program = reader.read()

    def write_files(folder: Path) -> None:
        (folder / PLAN).write_text(program.to_json(), encoding="utf-8")
        save_file(to_arrays(program, reader.build.stored, reader.build.grids), folder / WEIGHTS)

    return write_files, inputs, outputs
