"""Models that the engine cannot compute alone: its parts and those of ONNX Runtime, called by turns.

Tensors pass from one to the other as arrays, without a copy of ours. What ONNX Runtime returns is checked before native
code reads it: its file is data from an artifact like any other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from lighten.errors import ArtifactError
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled
from lighten.runtime.native import load_engine
from lighten.runtime.native.parts import NATIVE, PARTS, Part, Parts, prefix
from lighten.runtime.native.profiler import Profiler
from lighten.runtime.onnxruntime import MODEL, load_session, session_options
from lighten.runtime.spec import BATCH, Array, TensorSpec


def load_mixed(artifact: Artifact, threads: int, profiler: Profiler | None = None) -> "Mixed":
    """Load every part. Each runtime uses all the threads while it is its turn. profiler: see Engine.

    Raises:
        ArtifactError: the parts do not fit together, or a file is not the part that it should be.
    """
    try:
        text = (artifact.path / PARTS).read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot load the parts of '{artifact.path}': {error}.") from error
    found = Parts.from_json(text, artifact.inputs, artifact.outputs)
    calls = [_load_part(artifact, i, part, threads, profiler) for i, part in enumerate(found.parts)]
    return Mixed(artifact.inputs, found, calls)


class Mixed:
    """Call with one array for each input of the artifact; returns one for each output. Thread-safe.

    inputs: what the arrays are. calls: of the parts, in order.

    Raises:
        ArtifactError: no input has a batch.
    """

    def __init__(self, inputs: Sequence[TensorSpec], parts: Parts, calls: Sequence[Compiled]) -> None:
        if (first := next((i for i, spec in enumerate(inputs) if spec.shape[:1] == (BATCH,)), None)) is None:
            raise ArtifactError(f"None of the inputs {[spec.name for spec in inputs]} has a batch. Export again.")
        self._names, self._outputs, self._first = [spec.name for spec in inputs], parts.outputs, first
        last = {spec.name: part for part in parts.parts for spec in part.inputs}
        # What nothing reads any more makes room, and the next value finds that room in the cache.
        ends = [[name for name in last if last[name] is part and name not in parts.outputs] for part in parts.parts]
        self._turns = list(zip(parts.parts, calls, map(_promised, parts.parts), ends, strict=True))

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """See the class."""
        values = dict(zip(self._names, arrays, strict=True))
        n = arrays[self._first].shape[0]
        for part, call, promised, ends in self._turns:
            made = call([values[spec.name] for spec in part.inputs])
            for i, dtype, shape in promised:
                if made[i].dtype != dtype or made[i].shape != (n, *shape):
                    raise ArtifactError(
                        f"A part made another tensor than it promises: '{part.outputs[i].name}' is {made[i].dtype} "
                        f"{list(made[i].shape)} and not {dtype} {[n, *shape]}. Export the model again."
                    )
            values |= zip((spec.name for spec in part.outputs), made, strict=True)
            for name in ends:
                del values[name]
        outputs = [values[name] for name in self._outputs]
        lent = [*map(id, arrays)]
        return [out.copy() if id(out) in (*lent, *map(id, outputs[:i])) else out for i, out in enumerate(outputs)]


def _promised(part: Part) -> list[tuple[int, np.dtype[Any], tuple[int | str, ...]]]:
    """Which outputs are to be checked, with type and shape of a sample: the engine reads what ONNX Runtime made.

    Those with another free axis than the batch only leave, for no part of the engine takes them.
    """
    if part.runtime == NATIVE:
        return []
    return [
        (i, np.dtype(spec.dtype), spec.shape[1:])
        for i, spec in enumerate(part.outputs)
        if spec.shape[:1] == (BATCH,) and all(isinstance(size, int) for size in spec.shape[1:])
    ]


def _load_part(artifact: Artifact, at: int, part: Part, threads: int, profiler: Profiler | None) -> Compiled:
    """Threads of either runtime that have nothing to do leave the cores to the other's."""
    if part.runtime == NATIVE:
        how: dict[str, Any] = {"prefix": prefix(at), "lingers": False, "profiler": profiler}
        return load_engine(artifact.path, part.inputs, part.outputs, threads, **how)
    return _called(part, at, load_session(artifact.path / (prefix(at) + MODEL), session_options(threads, spins=False)))


def _called(part: Part, at: int, session: ort.InferenceSession) -> Compiled:
    """The session as a call.

    Raises:
        ArtifactError: it has another number of inputs or outputs.
    """
    names, wanted = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    if (len(names), len(wanted)) != (len(part.inputs), len(part.outputs)):
        raise ArtifactError(
            f"Part {at} reads {len(part.inputs)} values and makes {len(part.outputs)}, but its model has {len(names)} "
            f"inputs and {len(wanted)} outputs. Export the model again."
        )
    return lambda arrays: session.run(wanted, dict(zip(names, arrays, strict=True)))
