"""The ONNX Runtime backend: ``model.onnx`` with fused float or integer kernels.

Execution providers that the installed build offers are used in the order of PROVIDERS; the CPU is always the last
resort. TensorRT is not among them: it spends minutes on building an engine, so it has to be asked for by name.
"""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from lighten.errors import ArtifactError
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled, Description, only_options
from lighten.runtime.spec import Array

MODEL = "model.onnx"
PROVIDERS = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider")
CPU = "CPUExecutionProvider"


def session_options(threads: int, *, spins: bool = True) -> ort.SessionOptions:
    """All graph optimizations; one operator at a time, on that many threads; denormals are zeros.

    spins: whether threads that wait keep their cores.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; a library does not chatter
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Threads that wait by spinning: 1.4 to 1.9 times faster for calls of 0.04 to 10 ms (2 threads, Zen 4). They go on
    # for about 40 ms after a call, which is why runtime/measure.py stops the processes that are not being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    return options


def compile(artifact: Artifact, threads: int) -> Compiled:
    """Load model.onnx.

    Raises:
        ArtifactError: ONNX Runtime refuses the file, or its inputs and outputs are not those of the manifest.
    """
    wanted = only_options(artifact, {"provider": str}).get("provider")
    offered = ort.get_available_providers()
    preferred = PROVIDERS if wanted is None else (wanted,)
    if wanted is not None and wanted not in offered:
        raise ArtifactError(f"'{artifact.path}' asks for {wanted}. The installed ONNX Runtime offers {offered}.")
    providers = [name for name in preferred if name in offered and name != CPU] + [CPU]
    session = load_session(artifact.path / MODEL, session_options(threads), providers)
    input_names = [spec.name for spec in artifact.inputs]
    output_names = [spec.name for spec in artifact.outputs]
    _must_match(artifact, "inputs", input_names, [node.name for node in session.get_inputs()])
    _must_match(artifact, "outputs", output_names, [node.name for node in session.get_outputs()])

    def run(arrays: Sequence[Array]) -> list[Array]:
        return session.run(output_names, dict(zip(input_names, arrays, strict=True)))  # type: ignore[no-any-return]

    return run


def load_session(model: Path, options: ort.SessionOptions, providers: Sequence[str] = (CPU,)) -> ort.InferenceSession:
    """A session of that file.

    Raises:
        ArtifactError: ONNX Runtime refuses it.
    """
    try:
        return ort.InferenceSession(str(model), options, providers=list(providers))
    except Exception as error:  # its exceptions share no other base
        raise ArtifactError(f"ONNX Runtime {ort.__version__} cannot load '{model}': {error}") from error


def describe() -> Description:
    """Version, and the execution providers of the installed build."""
    return Description("onnxruntime", ort.__version__, tuple(ort.get_available_providers()))


def _must_match(artifact: Artifact, what: str, listed: list[str], found: list[str]) -> None:
    if sorted(listed) != sorted(found):
        raise ArtifactError(f"The manifest of '{artifact.path}' lists the {what} {listed}, but its model has {found}.")
