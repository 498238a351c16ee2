"""Tiny ONNX models and artifacts, built without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.spec import TensorSpec

IN = TensorSpec("x", "float32", ("batch", 3))
OUT = TensorSpec("y", "float32", ("batch", 2))
WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32")


def linear(weight: np.ndarray = WEIGHT) -> bytes:
    """y = x @ weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return _serialize(graph)


def add_and_subtract(shape: tuple[int | str, ...] = ("batch", 3)) -> bytes:
    """total = a + b, difference = a - b."""
    of = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ab"]
    to = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("total", "difference")]
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    return _serialize(helper.make_graph(nodes, "two", of, to))


def write_linear(folder: Path, weight: np.ndarray = WEIGHT, **changes: Any) -> Artifact:
    settings: dict[str, Any] = {
        "runtime": "onnxruntime",
        "options": {"threads": 1},
        "inputs": [IN],
        "outputs": [OUT],
        "write_files": lambda to: (to / "model.onnx").write_bytes(linear(weight)),
    }
    return write_artifact(folder, **{**settings, **changes})


def write_two(folder: Path, shape: tuple[int | str, ...] = ("batch", 3), **changes: Any) -> Artifact:
    settings: dict[str, Any] = {
        "inputs": [TensorSpec(name, "float32", shape) for name in "ab"],
        "outputs": [TensorSpec(name, "float32", shape) for name in ("total", "difference")],
        "write_files": lambda to: (to / "model.onnx").write_bytes(add_and_subtract(shape)),
    }
    return write_linear(folder, **{**settings, **changes})


def _serialize(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
