"""lighten.json: the JSON of the manifest, its format, its version, and its hash of itself."""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lighten
from lighten.errors import ArtifactError

MANIFEST = "lighten.json"
FORMAT = "lighten-artifact"
VERSION = 1
MAX_MANIFEST_BYTES = 64 * 2**20
_KEYS = {"format", "version", "lighten", "runtime", "options", "inputs", "outputs", "plan", "notes", "files", "sha256"}


def read_manifest(folder: Path) -> bytes:
    """The bytes of the manifest in folder, a bounded number of them.

    Raises:
        ArtifactError: there is none, or it is no plain file. OSError: it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise ArtifactError(f"'{folder}' is not an artifact: it holds no {MANIFEST}. Give the folder of one.")
    must_be_plain(path)
    with path.open("rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"'{path}' is larger than {MAX_MANIFEST_BYTES} bytes. No manifest of ours is.")
    return raw


def parse_manifest(folder: Path, raw: bytes) -> dict[str, Any]:
    """raw as plain data, with its format, version, keys and own hash checked; folder is for the message.

    Raises:
        ArtifactError: one of these is not what this lighten reads.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        own_hash = self_hash(manifest) if isinstance(manifest, dict) else None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not valid JSON: {error}. It was damaged: copy or export again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f'\'{path}\' does not say "format": "{FORMAT}". It is not an artifact of lighten.')
    if manifest.get("version") != VERSION:
        raise ArtifactError(
            f"'{path}' has format version {manifest.get('version')!r}, and this lighten ({lighten.__version__}) reads "
            f"{VERSION}. Use the lighten that wrote it ({manifest.get('lighten')!r}), or export the model again."
        )
    if set(manifest) != _KEYS:
        raise ArtifactError(f"'{path}' misses or adds the keys {sorted(set(manifest) ^ _KEYS)}. Export again.")
    if manifest["sha256"] != own_hash:
        raise ArtifactError(f"'{path}' was changed after it was written: its own SHA-256 differs. Export again.")
    return manifest


def must_be_plain(path: Path) -> None:
    """Raise ArtifactError where path is a folder, a link, a pipe or a device."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ArtifactError(f"'{path}' is a folder, a link or a device. An artifact holds plain files only.")


def self_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 in hex of the content, not of the layout: sorted keys, no spaces, everything but the hash itself."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError(f"a key appears twice among {[key for key, _ in pairs]}")
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
