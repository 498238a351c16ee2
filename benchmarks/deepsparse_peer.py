"""DeepSparse as a contender of sparse.py, which runs this in a process of its own, by a Python that has DeepSparse.

`python3.11 -m venv DIR && DIR/bin/pip install "numpy<2" deepsparse==1.8.0 safetensors`, then sparse.py
--deepsparse-python DIR/bin/python. The batch is fixed when it compiles.

Where an operator is unknown to its compiler the whole network runs in the ONNX Runtime inside it, as slowly as a dense
one. So models are first put in the terms that it has, of ONNX's operator set 18: Gelu, and means over a whole image.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lighten.errors import ArtifactError
from lighten.runtime.worker import serve

MODEL, OPSET, IR_VERSION = "model.onnx", 18, 8


def make_older_(file: Path) -> None:
    """Rewrite the model in file."""
    model = onnx.load(file)
    model.ir_version = IR_VERSION
    model.opset_import[0].version = OPSET
    axes = {
        each.name: onnx.numpy_helper.to_array(each).tolist() for each in model.graph.initializer if each.dims == [2]
    }
    nodes = [old for node in model.graph.node for old in older(node, axes)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    constants = (("gelu.root", 2**0.5), ("gelu.one", 1.0), ("gelu.half", 0.5))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(value), name) for name, value in constants)
    onnx.save(model, file)


def older(node: onnx.NodeProto, axes: dict[str, list[int]]) -> list[onnx.NodeProto]:
    """Nodes that compute the same. axes: the initializers of two numbers."""
    x, y = node.input[0], node.output[0]
    if node.op_type == "Gelu":  # x · (1 + erf(x / √2)) / 2
        steps = [
            ("Div", [x, "gelu.root"], f"{y}.a"),  # with a Div its compiler knows the pattern
            ("Erf", [f"{y}.a"], f"{y}.b"),
            ("Add", [f"{y}.b", "gelu.one"], f"{y}.c"),
            ("Mul", [x, f"{y}.c"], f"{y}.d"),
            ("Mul", [f"{y}.d", "gelu.half"], y),
        ]
    elif node.op_type == "ReduceMean" and axes.get(node.input[-1]) in ([2, 3], [-2, -1], [-1, -2]):
        keeps = all(each.i for each in node.attribute if each.name == "keepdims")
        steps = [("GlobalAveragePool", [x], y if keeps else f"{y}.kept")]
        steps += [] if keeps else [("Flatten", [f"{y}.kept"], y)]
    else:
        return [node]
    return [onnx.helper.make_node(op, inputs, [output]) for op, inputs, output in steps]


def load(job: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    started = time.perf_counter()
    import deepsparse
    from safetensors.numpy import load_file, save_file

    arrays = [array for _, array in sorted(load_file(job["inputs"]).items())]
    imported = time.perf_counter()
    model = str(Path(job["artifact"]) / MODEL)
    try:
        engine = deepsparse.compile_model(model, batch_size=len(arrays[0]), num_cores=job["threads"])
        loaded = time.perf_counter()
        outputs = engine.run(arrays)
    except RuntimeError as error:
        raise ArtifactError(f"DeepSparse: {error}") from error
    first_call_ms = (time.perf_counter() - loaded) * 1e3
    save_file({f"#{i}": output.copy() for i, output in enumerate(outputs)}, job["outputs"])
    times = {"import_ms": (imported - started) * 1e3, "load_ms": (loaded - imported) * 1e3}
    return lambda: engine.run(arrays), {**times, "first_call_ms": first_call_ms, "runtime": "deepsparse"}


if __name__ == "__main__":
    serve(load)
