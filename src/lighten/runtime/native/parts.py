"""The parts of a model that the engine and ONNX Runtime compute by turns, as data, and the check that they fit.

A value is one tensor: an input of the artifact, by its name there, or what a part makes. A part reads values of earlier
parts alone, so the order of the list is one in which they can run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.spec import TensorSpec

PARTS, VERSION = "parts.json", 1
NATIVE, ONNXRUNTIME = RUNTIMES = ("native", "onnxruntime")
MAX_PARTS = 1024


def prefix(at: int) -> str:
    """Of the names of the files of part number `at`."""
    return f"part{at}-"


@dataclass(frozen=True, kw_only=True)
class Part:
    """runtime: one of RUNTIMES. inputs: the values that it reads. outputs: those that it makes, under their names."""

    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Parts:
    """parts: in the order in which they run. outputs: the values that the artifact's outputs are."""

    parts: tuple[Part, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> str:
        """The inverse of from_json."""
        parts = [
            {
                "runtime": part.runtime,
                "inputs": [spec.name for spec in part.inputs],
                "outputs": [spec.to_dict() for spec in part.outputs],
            }
            for part in self.parts
        ]
        return json.dumps({"version": VERSION, "parts": parts, "outputs": list(self.outputs)})

    @classmethod
    def from_json(cls, text: str | bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> "Parts":
        """Read and check the parts of an artifact with those inputs and outputs; text is not trusted.

        Raises:
            ArtifactError: they cannot run one after another, or do not make these outputs.
        """
        try:
            data = json.loads(text)
            if _fields(data, {"version", "parts", "outputs"})["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}, and this lighten reads {VERSION}")
            values = {spec.name: spec for spec in inputs}
            parts = tuple(_part(entry, values) for entry in _list(data["parts"]))
            made = [_known(name, values) for name in _list(data["outputs"])]
            if [(spec.dtype, spec.shape) for spec in made] != [(spec.dtype, spec.shape) for spec in outputs]:
                raise ValueError(f"its outputs {data['outputs']} are not those of the manifest")
        except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
            raise ArtifactError(
                f"This is no list of parts of a model: {type(error).__name__}: {error}. Export the model again."
            ) from error
        return cls(parts, tuple(spec.name for spec in made))


def sentences(notes: Mapping[str, Any]) -> list[str]:
    """A line for each part of a model, by the notes of its manifest; none for a model that is not in parts."""
    lines = []
    for i, part in enumerate(notes.get("parts", [])):
        n_operators, macs, by_zero = sum(part["operators"].values()), part["macs"], part["macs_by_zero"]
        what = f"{n_operators} operators, {macs:,} multiplications by weights, {by_zero:,} of them by zero"
        why = [f"{', '.join(names)}: {reason}" for reason, names in part["why"].items()]
        lines.append("; ".join([f"part {i} on {part['runtime']}: {what}", *why]))
    return lines


def _part(entry: Any, values: dict[str, TensorSpec]) -> Part:
    """The part, whose outputs are among values from then on."""
    given = _fields(entry, {"runtime", "inputs", "outputs"})
    if given["runtime"] not in RUNTIMES:
        raise ValueError(f"a part on the runtime {given['runtime']!r}; known: {', '.join(RUNTIMES)}")
    reads = tuple(_known(name, values) for name in _list(given["inputs"]))
    makes = tuple(TensorSpec.from_dict(spec) for spec in _list(given["outputs"]))
    for spec in makes:
        if spec.name in values:
            raise ValueError(f"two values are called {spec.name!r}")
        values[spec.name] = spec
    return Part(runtime=given["runtime"], inputs=reads, outputs=makes)


def _known(name: Any, values: Mapping[str, TensorSpec]) -> TensorSpec:
    if not isinstance(name, str) or name not in values:
        raise ValueError(f"{name!r} is read, and nothing made it before")
    return values[name]


def _fields(entry: Any, fields: set[str]) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != fields:
        raise ValueError(f"{entry!r} has not just the fields {sorted(fields)}")
    return entry


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PARTS:
        raise ValueError(f"{value!r} is no list of 1 to {MAX_PARTS}")
    return value
