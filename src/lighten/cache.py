"""Where lighten keeps what it can make again: trained weights of built-in tasks, compiled code, measurements."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """$LIGHTEN_CACHE, else $XDG_CACHE_HOME/lighten, else ~/.cache/lighten. It need not exist."""
    if chosen := os.environ.get("LIGHTEN_CACHE"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "lighten"
    return Path.home() / ".cache" / "lighten"


def recall(kind: str, digest: str) -> Any:
    """What remember kept under these names, or None where there is nothing that can be read."""
    try:
        return json.loads((cache_dir() / kind / f"{digest}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remember(kind: str, digest: str, data: Any) -> None:
    """Keep plain data for the next process; where the folder cannot be written, it is measured again then."""
    path = cache_dir() / kind / f"{digest}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(path)
