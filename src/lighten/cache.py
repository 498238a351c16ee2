"""Where lighten keeps what it can make again: trained weights of built-in tasks, compiled code."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """$LIGHTEN_CACHE, else $XDG_CACHE_HOME/lighten, else ~/.cache/lighten. It need not exist."""
    if chosen := os.environ.get("LIGHTEN_CACHE"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "lighten"
    return Path.home() / ".cache" / "lighten"
