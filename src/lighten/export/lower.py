"""Lowering: from a captured module to the model files of a runtime."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lighten.errors import ConfigError
from lighten.export.native import to_native
from lighten.export.onnx import tensor_specs, to_onnx
from lighten.export.torch import to_torch
from lighten.graph.capture import CapturedModule
from lighten.runtime.native.packed import BFLOAT_BITS, FLOAT_BITS
from lighten.runtime.spec import TensorSpec
from lighten.runtime.torch_graph import save_graph

RUNTIMES = ("onnxruntime", "openvino", "torch", "native")
VALUES = {"float32": FLOAT_BITS, "bfloat16": BFLOAT_BITS}  # types of float weights, and their bits


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """inputs, outputs: as a manifest lists them. write_files: puts the model files into a folder. notes: for the
    manifest."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    write_files: Callable[[Path], None]
    notes: Mapping[str, Any] = field(default_factory=dict)


def lower(captured: CapturedModule, example_inputs: tuple[Any, ...], runtime: str, values: str = "float32") -> Lowered:
    """captured for runtime; those that read ONNX read the same files, weight-only layers aside.

    values: one of VALUES, for weights that are floats; other than float32 for runtime "native" alone.

    Raises:
        CaptureError: the model has no counterpart there; write_files raises it, too.
    """
    if runtime == "torch":
        module, inputs, outputs = to_torch(captured, example_inputs)
        return Lowered(inputs=inputs, outputs=outputs, write_files=lambda folder: save_graph(module, folder))
    if runtime == "native":
        write_files, inputs, outputs, notes = to_native(captured, example_inputs, VALUES[values])
        return Lowered(inputs=inputs, outputs=outputs, write_files=write_files, notes=notes)
    proto = to_onnx(captured, example_inputs, standard=runtime != "onnxruntime")
    inputs, outputs = tensor_specs(proto)

    def write_onnx(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    return Lowered(inputs=inputs, outputs=outputs, write_files=write_onnx)


def must_be_known(runtime: str, values: str = "float32") -> None:
    """Raises ConfigError: there is no such runtime, or it has no weights of that type."""
    if values not in VALUES or (values != "float32" and runtime != "native"):
        raise ConfigError(
            f"Cannot export to the runtime '{runtime}' with values='{values}'. Every runtime has float32, and 'native' "
            f"all of: {', '.join(VALUES)}."
        )
    if runtime not in RUNTIMES:
        raise ConfigError(f"Cannot export to the runtime '{runtime}'. Available: {', '.join((*RUNTIMES, 'auto'))}.")
