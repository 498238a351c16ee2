"""The OpenVINO backend (extra): the same ``model.onnx``, compiled for the CPU by OpenVINO.

float32 stays float32: left to itself, OpenVINO computes in bfloat16 on a CPU that has it, and then outputs differ by
about 0.5 % of their range. The option precision="bf16" allows it.
"""

import queue
from collections.abc import Sequence
from typing import Any

from lighten.errors import ArtifactError, require
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled, Description, only_options
from lighten.runtime.spec import Array

MODEL = "model.onnx"
PRECISIONS = ("f32", "bf16", "f16")


def compile(artifact: Artifact, threads: int) -> Compiled:
    """Load model.onnx: one stream on that many threads, tuned for latency; denormals are zeros.

    Raises:
        MissingExtraError: OpenVINO is not installed. ArtifactError: it refuses the file, or the inputs and outputs are
        not those of the manifest.
    """
    ov = require("openvino", "openvino")
    precision = only_options(artifact, {"precision": str}).get("precision", "f32")
    if precision not in PRECISIONS:
        raise ArtifactError(f"'{artifact.path}' asks for precision {precision!r}. Known: {', '.join(PRECISIONS)}.")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    try:
        model = ov.Core().compile_model(artifact.path / MODEL, "CPU", settings)
        inputs = [model.input(spec.name) for spec in artifact.inputs]
        outputs = [model.output(spec.name) for spec in artifact.outputs]
    except Exception as error:  # RuntimeError mostly, but nothing says only that
        raise ArtifactError(
            f"OpenVINO {ov.__version__} cannot load '{artifact.path / MODEL}' with the inputs and outputs of its "
            f"manifest: {error}"
        ) from error
    if (len(inputs), len(outputs)) != (len(model.inputs), len(model.outputs)):
        raise ArtifactError(
            f"The model in '{artifact.path}' has {len(model.inputs)} inputs and {len(model.outputs)} outputs, but the "
            f"manifest lists {len(inputs)} and {len(outputs)}."
        )
    # A request serves one caller at a time. They are kept, the warmest on top, and made when all are busy.
    idle: queue.LifoQueue[Any] = queue.LifoQueue()

    def run(arrays: Sequence[Array]) -> list[Array]:
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = model.create_infer_request()
        results = request.infer(dict(zip(inputs, arrays, strict=True)), share_inputs=True)
        found = [results[output] for output in outputs]
        idle.put(request)
        return found

    return run


def describe() -> Description:
    """Version and devices.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    ov = require("openvino", "openvino")
    return Description("openvino", ov.__version__, tuple(ov.Core().available_devices))
