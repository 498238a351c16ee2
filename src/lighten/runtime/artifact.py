"""The artifact: a folder with the model files of one runtime and ``lighten.json``, which says what they are.

The manifest lists every other file with its size and SHA-256, and carries the SHA-256 of itself, so a flipped bit
anywhere is noticed. Names are plain file names: nothing in an artifact can point out of its folder. An artifact holds
data only; reading one never unpickles and never runs anything.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lighten
from lighten.errors import ArtifactError, LightenError
from lighten.plan import Plan
from lighten.runtime.folder import write_folder
from lighten.runtime.manifest import FORMAT, MANIFEST, VERSION, must_be_plain, parse_manifest, read_manifest, self_hash
from lighten.runtime.spec import TensorSpec

CHUNK_BYTES = 2**20
READS = 10  # a writer may replace the folder while it is read
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")  # no separator, no drive, not "." or ".."


@dataclass(frozen=True)
class File:
    """One model file: the SHA-256 of its bytes in hex, and their count."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a folder holds, as its manifest says. options: the runtime's own, e.g. threads. files: by name.

    notes: whatever the writer wants kept (measurements, provenance), plain JSON data. size_bytes: all that lies on
    disk in the folder, the manifest included.
    """

    path: Path
    runtime: str
    options: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, File]
    plan: Plan | None
    notes: Mapping[str, Any]
    size_bytes: int


def write_artifact(
    out_dir: Path,
    *,
    runtime: str,
    options: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    write_files: Callable[[Path], None],
    plan: Plan | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write an artifact to out_dir, or leave out_dir as it was. write_files(folder) puts the model files into folder.

    An artifact that is there already is replaced in one step; an empty folder may be there too.

    Raises:
        ArtifactError: out_dir holds something else, write_files left no plain files, or the disk refuses.
        Whatever write_files raises, OSError aside, passes through.
    """
    out_dir = Path(out_dir).absolute()
    about = {
        "format": FORMAT,
        "version": VERSION,
        "lighten": lighten.__version__,
        "runtime": runtime,
        "options": dict(options),
        "inputs": [spec.to_dict() for spec in inputs],
        "outputs": [spec.to_dict() for spec in outputs],
        "plan": None if plan is None else plan.to_dict(),
        "notes": dict(notes or {}),
    }

    def fill(folder: Path) -> None:
        write_files(folder)
        names = _file_names(folder)
        if not names or (odd := [name for name in names if not _is_allowed(name)]):
            raise ArtifactError(
                f"Cannot make the artifact '{out_dir}': write_files left {odd if names else 'nothing'}. "
                "It must leave at least one file, with plain names of letters, digits and _ . + -"
            )
        manifest = json.loads(json.dumps(about, allow_nan=False))  # as a reader will see it
        manifest["files"] = {
            name: {"sha256": _sha256(folder / name), "size_bytes": (folder / name).stat().st_size} for name in names
        }
        manifest["sha256"] = self_hash(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    try:
        write_folder(out_dir, fill, must_be_replaceable)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write the artifact '{out_dir}': {error.strerror or error} ({error.filename or out_dir}). "
            "What was there before is untouched. Free the space or fix the permission, then try again."
        ) from error
    return read_artifact(out_dir)


def read_artifact(folder: Path) -> Artifact:
    """Read the manifest and check every file against it, a chunk at a time.

    Raises:
        ArtifactError: not an artifact, another version, or a file is missing, extra, a link, or not what was written.
    """
    folder = Path(folder)
    try:
        raw = read_manifest(folder)
        for _ in range(READS):
            try:
                return _verified(folder, raw)
            except (ArtifactError, OSError):
                before, raw = raw, read_manifest(folder)
                if raw == before:
                    raise
    except OSError as error:
        raise ArtifactError(f"Cannot read the artifact '{folder}': {error.strerror} ({error.filename}).") from error
    raise ArtifactError(f"Cannot read the artifact '{folder}': it was replaced {READS} times meanwhile. Try again.")


def _verified(folder: Path, raw: bytes) -> Artifact:
    manifest = parse_manifest(folder, raw)
    try:
        files = {name: File(**entry) for name, entry in manifest["files"].items()}
        plan = None if manifest["plan"] is None else Plan.from_dict(manifest["plan"])
        inputs = tuple(map(TensorSpec.from_dict, manifest["inputs"]))
        outputs = tuple(map(TensorSpec.from_dict, manifest["outputs"]))
        runtime, options, notes = str(manifest["runtime"]), dict(manifest["options"]), dict(manifest["notes"])
    except (LightenError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"'{folder / MANIFEST}' is not a manifest that lighten wrote: {error}") from error
    for name in files:
        if not _is_allowed(name):
            raise ArtifactError(f"'{folder / MANIFEST}' lists the file {name!r}. Only plain file names are allowed.")
    if unlisted := [name for name in _file_names(folder) if name != MANIFEST and name not in files]:
        raise ArtifactError(
            f"'{folder}' holds {unlisted}, which its manifest does not list. What is measured is what is shipped: "
            "move them elsewhere."
        )
    for name, expected in files.items():
        _check_file(folder / name, expected)
    return Artifact(
        path=folder,
        runtime=runtime,
        options=options,
        inputs=inputs,
        outputs=outputs,
        files=files,
        plan=plan,
        notes=notes,
        size_bytes=len(raw) + sum(file.size_bytes for file in files.values()),
    )


def _check_file(path: Path, expected: File) -> None:
    try:
        size_bytes = path.lstat().st_size
    except FileNotFoundError:
        raise ArtifactError(f"'{path}' is missing, but the manifest lists it. Export the model again.") from None
    if size_bytes != expected.size_bytes:
        raise ArtifactError(
            f"'{path}' has {size_bytes} bytes, but {expected.size_bytes} were written. It was cut off or replaced: "
            "copy the artifact again, or export the model again."
        )
    if _sha256(path) != expected.sha256:
        raise ArtifactError(
            f"'{path}' has another SHA-256 than the manifest says. It was damaged or replaced: copy the artifact "
            "again, or export the model again."
        )


def must_be_replaceable(folder: Path) -> None:
    """Allow what write_artifact may replace: nothing, an empty folder, an artifact, even a damaged one.

    Raises:
        ArtifactError: folder holds something else.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"'{folder}' exists and is not a folder. Choose another place for the artifact.")
    if not any(folder.iterdir()):
        return
    try:
        listed = set(dict(parse_manifest(folder, read_manifest(folder))["files"]))
        foreign = sorted(set(_file_names(folder)) - listed - {MANIFEST})
    except (ArtifactError, TypeError, ValueError) as error:
        raise ArtifactError(f"'{folder}' exists with other content, and is left alone: {error}") from error
    if foreign:
        raise ArtifactError(f"'{folder}' holds other files ({', '.join(foreign)}), and is left alone. Move them first.")


def _is_allowed(name: str) -> bool:
    return bool(_PLAIN_NAME.fullmatch(name)) and name != MANIFEST


def _file_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        must_be_plain(folder / name)
    return names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
