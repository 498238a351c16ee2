"""Compiled code that is kept: used again, checked, and never needed."""

import os
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from lighten.runtime.native import jit, kept

SOURCE = """
define i64 @run(i64 %x) {
  %y = add i64 %x, 1
  ret i64 %y
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path))
    return tmp_path / "native"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that LLVM had to compile."""
    sources, inner = [], jit._compiled
    monkeypatch.setattr(jit, "_compiled", lambda source, target: sources.append(source) or inner(source, target))
    return sources


def runs(source: str = SOURCE) -> bool:
    return bool(jit.compile_ir(source).get_function_address("run"))


def test_the_same_source_is_compiled_once(folder: Path, compiled: list[str]) -> None:
    assert runs()
    assert runs()
    assert compiled == [SOURCE]
    assert runs(SOURCE.replace("1", "2"))
    assert len(compiled) == len(list(folder.iterdir())) == 2


def test_only_the_owner_can_read_what_is_kept(folder: Path, compiled: list[str]) -> None:
    assert runs()
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"\1"])
def test_damaged_code_is_compiled_again(folder: Path, compiled: list[str], damage: object) -> None:
    assert runs()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))  # type: ignore[operator]
    assert runs()
    assert len(compiled) == 2
    assert file.read_bytes() == whole


def test_code_where_others_may_write_is_not_used(folder: Path, compiled: list[str]) -> None:
    assert runs()
    folder.chmod(0o777)
    assert runs()
    assert len(compiled) == 2


def test_a_folder_that_cannot_be_made_is_done_without(folder: Path, compiled: list[str]) -> None:
    folder.write_text("a file")
    assert runs()
    assert runs()
    assert len(compiled) == 2


def test_what_was_used_longest_ago_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    for i, key in enumerate(("a", "b")):
        kept.write(key, key.encode())
        os.utime(folder / key, (i, i))
    assert kept.read("a") == b"a"
    kept.write("c", b"c")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
