"""Drafts: the model written once for each runtime and memory layout, and the candidates that come of them.

Order is preference: of those that are equally fast, the first one wins (see runtime/contest.py). ONNX Runtime comes
first, because its file runs anywhere; a compiled graph last, because it needs a C++ compiler wherever it is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.errors import LightenError
from lighten.export.lower import Lowered, lower
from lighten.graph.capture import CapturedModule
from lighten.plan import Plan
from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.backends import backend
from lighten.runtime.contest import Candidate, Trial
from lighten.runtime.cpu import usable_cores

if TYPE_CHECKING:
    from lighten.runtime.native.retune import Choice

MOST_THREAD_COUNTS = 4
CPU_PROVIDER = "CPUExecutionProvider"
FORMATS = {"onnxruntime": "onnx", "openvino": "onnx", "torch": "torch", "native": "native"}


@dataclass(frozen=True)
class Draft:
    """One way to run the model. artifact: None where refused says why there is none."""

    name: str
    runtime: str
    options: Mapping[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None
    refused: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether it is compiled at its first call, which takes 5 to 40 seconds a process."""
        return self.options.get("mode") == "compile"

    def candidates(self, counts: Sequence[int]) -> list[Candidate]:
        """This draft on each number of threads in counts; of a refused one there are none."""
        if self.artifact is None:
            return []
        path = self.artifact.path
        return [Candidate(name=threaded(self.name, count), path=path, threads=count) for count in counts]

    def refusal(self) -> Trial:
        """A refused draft as an entry of the table."""
        return Trial(candidate=Candidate(name=self.name, path=Path(), threads=0), refused=self.refused)


def threaded(name: str, threads: int) -> str:
    """What a draft is called on that many threads."""
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def ways(captured: CapturedModule) -> list[Draft]:
    """Every way there is to run captured, nothing written yet."""
    found = [Draft("onnxruntime", "onnxruntime")]
    if _has_other_devices():
        found.append(Draft("onnxruntime on the CPU", "onnxruntime", {"provider": CPU_PROVIDER}))
    layouts = ["contiguous"]
    if any(weight.ndim == 4 for weight in captured.parameters()):
        layouts.append("channels_last")
    torch_ways = [
        Draft(_torch_name(mode, layout), "torch", {"mode": mode, "layout": layout})
        for mode in ("eager", "compile")
        for layout in layouts
    ]
    return [*found, Draft("openvino", "openvino"), Draft("native", "native"), *torch_ways]


def write_drafts(
    captured: CapturedModule, example_inputs: tuple[Any, ...], plan: Plan | None, scratch: Path
) -> list[Draft]:
    """All of ways(captured), each in a folder of scratch. One that cannot be lowered is refused, with the reason."""
    lowered: dict[str, Lowered | LightenError] = {}
    found: list[Draft] = []
    for way in ways(captured):
        kind = FORMATS[way.runtime]
        if kind not in lowered:
            lowered[kind] = _lower(captured, example_inputs, way.runtime)
        found.append(_written(way, lowered[kind], plan, scratch / str(len(found))))
    return found


def retuned_draft(draft: Draft, batch: int, folder: Path) -> "tuple[Draft | None, list[Choice]]":
    """draft, of the native engine, with the blocks that are the quickest here, in folder; None where they are those
    that it has. And what was timed.

    Raises:
        ArtifactError: it is damaged.
    """
    from lighten.runtime.native.retune import retune  # brings llvmlite, which is an extra

    artifact = draft.artifact
    assert artifact is not None
    choices, write_files = retune(artifact, batch)
    if all(choice.best == choice.block for choice in choices):
        return None, choices
    about = {name: getattr(artifact, name) for name in ("runtime", "options", "inputs", "outputs", "plan", "notes")}
    written = write_artifact(folder, write_files=write_files, **about)
    return Draft(f"{draft.name} retuned", draft.runtime, draft.options, written), choices


def thread_counts(cores: int) -> list[int]:
    """A few numbers of threads from 1 to cores, evenly spread over the doublings between them."""
    most = min(MOST_THREAD_COUNTS, cores)
    return sorted({round(cores ** (i / (most - 1))) for i in range(most)}) if most > 1 else [1]


def room(threads: int | None) -> list[int]:
    """The numbers of threads to try: the one asked for, or a few up to the usable cores."""
    return thread_counts(usable_cores()) if threads is None else [threads]


def _torch_name(mode: str, layout: str) -> str:
    return "torch" + (" compiled" if mode == "compile" else "") + (" channels-last" if layout != "contiguous" else "")


def _has_other_devices() -> bool:
    from lighten.runtime.onnxruntime import PROVIDERS

    return bool(set(PROVIDERS) & set(backend("onnxruntime").describe().devices))


def _lower(captured: CapturedModule, example_inputs: tuple[Any, ...], runtime: str) -> Lowered | LightenError:
    try:
        return lower(captured, example_inputs, runtime)
    except LightenError as error:
        return error


def _written(way: Draft, lowered: Lowered | LightenError, plan: Plan | None, folder: Path) -> Draft:
    try:
        if isinstance(lowered, LightenError):
            raise lowered
        artifact = write_artifact(
            folder,
            runtime=way.runtime,
            options=way.options,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            write_files=lowered.write_files,
            plan=plan,
            notes=lowered.notes,
        )
    except LightenError as error:
        return Draft(way.name, way.runtime, way.options, None, str(error))
    is_mixed = "parts" in artifact.notes
    return Draft(f"{way.name} with onnxruntime" if is_mixed else way.name, way.runtime, way.options, artifact)
