"""Where trained weights of the built-in tasks are kept: outside any repository, one safetensors file a recipe."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lighten.cache import cache_dir
from lighten.errors import ArtifactError, TaskError


def checkpoint_path(name: str, recipe: Mapping[str, Any]) -> Path:
    """The file for weights made by recipe (plain data); any change of the recipe changes the file."""
    text = json.dumps(recipe, sort_keys=True)
    return cache_dir() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def store(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write state to path whole, or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    data = safetensors.torch.save({key: value.contiguous() for key, value in state.items()})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"Cannot store {len(data)} bytes of trained weights at '{path}': {error.strerror}. "
            "Free some space there, or set LIGHTEN_CACHE to a folder that can be written."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Tensor] | None:
    """What store wrote at path, or None where there is nothing.

    Raises:
        TaskError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise TaskError(f"The checkpoint '{path}' cannot be read: {error}. Delete it and train again.") from error
