"""Models that the engine cannot compute alone: its parts and those of ONNX Runtime, called by turns.

Tensors pass from one to the other as arrays, without a copy of ours. What ONNX Runtime returns is checked before native
code reads it: its file is data from an artifact like any other.
"""

from collections.abc import Sequence

import onnxruntime as ort

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled
from lighten.runtime.native import load_engine
from lighten.runtime.native.packed import Array
from lighten.runtime.native.parts import NATIVE, PARTS, Part, Parts, prefix
from lighten.runtime.onnxruntime import MODEL, load_session, session_options
from lighten.runtime.spec import check_arrays


def load_mixed(artifact: Artifact, threads: int) -> "Mixed":
    """Load every part. Each runtime uses all the threads while it is its turn.

    Raises:
        ArtifactError: the parts do not fit together, or a file is not the part that it should be.
    """
    try:
        text = (artifact.path / PARTS).read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot load the parts of '{artifact.path}': {error}.") from error
    found = Parts.from_json(text, artifact.inputs, artifact.outputs)
    names = [spec.name for spec in artifact.inputs]
    return Mixed(names, found, [_load_part(artifact, i, part, threads) for i, part in enumerate(found.parts)])


class Mixed:
    """Call with one array for each input of the artifact, a batch; returns one for each output. Thread-safe.

    inputs: what the arrays are called. calls: of the parts, in order.
    """

    def __init__(self, inputs: Sequence[str], parts: Parts, calls: Sequence[Compiled]) -> None:
        self.inputs, self.parts, self.calls = tuple(inputs), parts, tuple(calls)
        last = {spec.name: i for i, part in enumerate(parts.parts) for spec in part.inputs}
        # What nothing reads any more makes room, and the next value finds that room in the cache.
        self._ends = [
            [name for name, at in last.items() if at == i and name not in parts.outputs] for i in range(len(self.calls))
        ]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """See the class."""
        values = dict(zip(self.inputs, arrays, strict=True))
        for part, call, ends in zip(self.parts.parts, self.calls, self._ends, strict=True):
            made = call([values[spec.name] for spec in part.inputs])
            values |= zip((spec.name for spec in part.outputs), made, strict=True)
            for name in ends:
                del values[name]
        outputs = [values[name] for name in self.parts.outputs]
        lent = [*map(id, arrays)]
        return [out.copy() if id(out) in (*lent, *map(id, outputs[:i])) else out for i, out in enumerate(outputs)]


def _load_part(artifact: Artifact, at: int, part: Part, threads: int) -> Compiled:
    """Threads of either runtime that have nothing to do leave the cores to the other's."""
    if part.runtime == NATIVE:
        return load_engine(artifact.path, part.inputs, part.outputs, threads, prefix=prefix(at), lingers=False)
    return _checked(part, at, load_session(artifact.path / (prefix(at) + MODEL), session_options(threads, spins=False)))


def _checked(part: Part, at: int, session: ort.InferenceSession) -> Compiled:
    """The session as a call whose results are what part promises.

    Raises:
        ArtifactError: it has another number of inputs or outputs.
    """
    names, wanted = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    if (len(names), len(wanted)) != (len(part.inputs), len(part.outputs)):
        raise ArtifactError(
            f"Part {at} reads {len(part.inputs)} values and makes {len(part.outputs)}, but its model has {len(names)} "
            f"inputs and {len(wanted)} outputs. Export the model again."
        )
    specs = (*part.inputs, *part.outputs)

    def run(arrays: Sequence[Array]) -> list[Array]:
        made: list[Array] = session.run(wanted, dict(zip(names, arrays, strict=True)))
        try:
            check_arrays(specs, [*arrays, *made])
        except ConfigError as error:
            raise ArtifactError(f"Part {at} made another tensor than it promises: {error}") from error
        return made

    return run
