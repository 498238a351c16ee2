"""The native backend: networks whose zeros are left out, compiled for this CPU when they are loaded.

Files: ``plan.json`` (program.py) and ``weights.safetensors`` (stored.py). Both are data; see docs/sparse-engine.md.
A model that the engine cannot compute alone has a ``parts.json`` (parts.py), and such files for each part of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lighten.errors import ArtifactError, require
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled, Description, only_options
from lighten.runtime.native.parts import PARTS
from lighten.runtime.native.program import Program
from lighten.runtime.native.stored import Stored, read_stored, to_arrays
from lighten.runtime.spec import BATCH, TensorSpec

if TYPE_CHECKING:
    from lighten.runtime.native.batch import Batched
    from lighten.runtime.native.engine import Engine
    from lighten.runtime.native.profiler import Profiler

PLAN, WEIGHTS = "plan.json", "weights.safetensors"


def compile(artifact: Artifact, threads: int, profiler: "Profiler | None" = None) -> Compiled:
    """Check plan and weights, then compile. Threads split the samples of a batch, and share those that are left over.

    profiler: is told what each call spends on each layer.

    Raises:
        MissingExtraError: llvmlite is not installed. ArtifactError: the files hold no program for these inputs and
        outputs.
    """
    require("llvmlite", "native")
    only_options(artifact, {})
    if PARTS in artifact.files:
        from lighten.runtime.native.mixed import load_mixed

        return load_mixed(artifact, threads, profiler)
    return load_engine(artifact.path, artifact.inputs, artifact.outputs, threads, profiler=profiler)


def load_engine(
    folder: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    threads: int,
    *,
    prefix: str = "",
    lingers: bool = True,
    profiler: "Profiler | None" = None,
) -> "Engine | Batched":
    """The program in folder, compiled. prefix: of the names of its files. lingers, profiler: see Engine.

    Raises:
        ArtifactError: the files hold no program for these inputs and outputs.
    """
    from lighten.runtime.native.batch import engine_for

    program, stored = load_program(folder, prefix)
    try:
        tensors = program.tensors
        _must_match(folder, "inputs", inputs, [(t.rows * t.height * t.width) for t in program.inputs])
        sizes = [tensors[at] for at in program.outputs]
        _must_match(folder, "outputs", outputs, [t.rows * t.height * t.width for t in sizes])
    except ArtifactError as error:
        raise ArtifactError(f"Cannot load the native program in '{folder}': {error}") from error
    shapes: Any = [spec.shape[1:] for spec in outputs]
    return engine_for(program, stored, shapes, threads=threads, lingers=lingers, profiler=profiler)


def load_program(folder: Path, prefix: str = "") -> tuple[Program, Stored]:
    """The program in folder and what it needs, checked. prefix: of the names of its files.

    Raises:
        ArtifactError: the files hold no program.
    """
    try:
        program = Program.from_json((folder / (prefix + PLAN)).read_bytes())
        return program, read_stored(program, load_file(folder / (prefix + WEIGHTS)))
    except (ArtifactError, OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"Cannot load the native program in '{folder}': {str(error).removesuffix('.')}.") from error


def save_program(program: Program, stored: Stored, folder: Path, prefix: str = "") -> None:
    """The inverse of load_program."""
    (folder / (prefix + PLAN)).write_text(program.to_json(), encoding="utf-8")
    # A format of C order, whose writer takes the memory of an array as it lies.
    arrays = {name: np.ascontiguousarray(array) for name, array in to_arrays(program, stored).items()}
    save_file(arrays, folder / (prefix + WEIGHTS))


def describe() -> Description:
    """The version of llvmlite, and the CPU that LLVM sees.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    llvm: Any = require("llvmlite.binding", "native")
    return Description("native", require("llvmlite", "native").__version__, (llvm.get_host_cpu_name(),))


def _must_match(folder: Path, what: str, specs: Sequence[TensorSpec], sizes: list[int]) -> None:
    """Native code reads and writes arrays of these sizes, so the manifest must promise exactly them.

    Inputs may be integers or masks, which become float32 in a call.
    """
    dtypes = ("float32", "int64", "int32", "bool") if what == "inputs" else ("float32",)
    found = []
    for spec in specs:
        size = 1
        for axis in spec.shape[1:]:
            size *= axis if isinstance(axis, int) else 0
        found.append(size if spec.dtype in dtypes and spec.shape[:1] == (BATCH,) else 0)
    if found != sizes:
        raise ArtifactError(
            f"'{folder}' lists the {what} {[spec.to_dict() for spec in specs]}, but its plan "
            f"has {sizes} numbers a sample in them."
        )
