"""Write a folder so that a reader sees all of the old one or all of the new one, whatever kills the writer.

The new folder is filled under a hidden sibling name, synced to disk, and put in place by one rename; where the kernel
can swap two folders (Linux, renameat2), there is no moment without one. Elsewhere the old one is moved aside first, and
the next writer brings it back if that is where the last one died.

A writer holds a lock on its temporary folder as long as it lives, so that a temporary that can be locked is a dead
writer's and may go. The parent is locked only while something is renamed or cleaned, never while files are written.
"""

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def write_folder(target: Path, fill: Callable[[Path], None], may_replace: Callable[[Path], None]) -> None:
    """Make target hold what fill(folder) puts there. On any error target is as it was, and nothing else is left.

    may_replace(target) is asked while target exists, before fill and again before the swap; it raises to refuse.

    Raises:
        OSError: from the file system. Whatever fill or may_replace raises passes through.
    """
    if target.is_symlink() or target.exists():
        may_replace(target)
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as temporary:
        fill(temporary)
        _sync_tree(temporary)
        with _lock(parent):
            if target.is_symlink() or target.exists():
                may_replace(target)
                _replace(temporary, target)
            else:
                temporary.rename(target)
            _sync(parent)


def _replace(new: Path, old: Path) -> None:
    if _exchange(new, old):
        return  # the temporary holds the old content now, and goes with it
    aside = new.with_name(new.name + ".old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # the new one is in place: what is left is the next writer's to clean


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.4
    if renameat2 is None:
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    prefix = f".{target.name}.writing-"
    temporary = target.with_name(prefix + secrets.token_hex(8))
    with _lock(target.parent):
        _clean_up_after_the_dead(target, prefix)
        temporary.mkdir()
        lock = try_lock(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _clean_up_after_the_dead(target: Path, prefix: str) -> None:
    for left in sorted(path for path in target.parent.iterdir() if path.name.startswith(prefix)):
        lock = try_lock(left)
        if lock is None:
            continue  # its writer lives
        if left.name.endswith(".old") and not target.exists():
            left.rename(target)
        else:
            shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


def try_lock(folder: Path) -> int | None:
    """A file descriptor that holds the lock of folder, or None: someone has it, or this system has no such locks."""
    if sys.platform == "win32":
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other writers from renaming in folder. Where there is no such lock, the renames are still atomic."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there, and a file only for writing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
