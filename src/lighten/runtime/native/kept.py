"""Compiled code that is kept from one process to the next, in a folder of the user's cache that is the user's alone.

A file is the SHA-256 of the code and then the code. What cannot be read or written, or is not what was written, or lies
where others may write, counts as not there: the code is compiled again.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from lighten.cache import cache_dir

MOST = 256  # files; the one that was used longest ago goes first
DIGEST = 32


def read(key: str) -> bytes | None:
    """The code that was written under key, or None."""
    path = _folder() / key
    try:
        if not _is_private(path.parent):
            return None
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    return data[DIGEST:] if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST] else None


def write(key: str, code: bytes) -> None:
    """Keep code under key, if that can be done."""
    folder = _folder()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder):
            _write_whole(folder / key, hashlib.sha256(code).digest() + code)
            for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST]:
                old.unlink()


def _write_whole(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)  # a file that only its owner can read or write
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _folder() -> Path:
    return cache_dir() / "native"


def _is_private(folder: Path) -> bool:
    """Whether nobody but this user can have put code there."""
    if not hasattr(os, "getuid"):
        return True  # Windows: a user's folder is the user's
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
