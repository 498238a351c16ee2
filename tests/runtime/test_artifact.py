import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lighten.errors import ArtifactError
from lighten.plan import LayerPlan, Plan
from lighten.runtime.artifact import read_artifact
from lighten.runtime.manifest import MANIFEST, self_hash
from tests.runtime.models import IN, OUT, WEIGHT, linear, write_linear


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest and sign it again, as an attacker would."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **changes}
    manifest["sha256"] = self_hash(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    plan = Plan(layers={"conv": LayerPlan(channels=8, kept=3)}, ratio=0.6)
    written = write_linear(tmp_path / "out", plan=plan, notes={"seed": 3})
    read = read_artifact(tmp_path / "out")
    assert read == written
    assert (read.runtime, read.options, read.inputs, read.outputs) == ("onnxruntime", {"threads": 1}, (IN,), (OUT,))
    assert (read.plan, read.notes) == (plan, {"seed": 3})
    assert read.files["model.onnx"].size_bytes == len(linear())


def test_size_is_all_that_lies_on_disk(tmp_path: Path) -> None:
    artifact = write_linear(tmp_path / "out")
    assert artifact.size_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_an_older_artifact_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"damaged")
    new = write_linear(tmp_path / "out", WEIGHT * 2, notes={"second": True})
    assert read_artifact(tmp_path / "out") == new
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_folders_cannot_be_swapped_the_old_one_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lighten.runtime.folder._exchange", lambda *_: False)
    write_linear(tmp_path / "out")
    write_linear(tmp_path / "out", notes={"second": True})
    assert read_artifact(tmp_path / "out").notes == {"second": True}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_there_and_parents_need_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_linear(tmp_path / "empty")
    write_linear(tmp_path / "some" / "where" / "else")


def test_other_content_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="other content"):
        write_linear(out, write_files=lambda _: pytest.fail("refused too late"))
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("thesis.tex", "years of work")]


@pytest.mark.parametrize("kind", ["file", "link", "artifact and more"])
def test_what_cannot_be_replaced_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        write_linear(tmp_path / "real")
        out.symlink_to(tmp_path / "real")
    else:
        write_linear(out)
        (out / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="out"):
        write_linear(out)


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "anew"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "model.onnx"), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(tmp_path: Path, error: BaseException, old: bool) -> None:
    before = write_linear(tmp_path / "out") if old else None

    def fail(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise error

    with pytest.raises(ArtifactError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_linear(tmp_path / "out", write_files=fail)
    if isinstance(error, OSError):
        assert "No space left on device (model.onnx)" in str(caught.value)
        assert "out" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * old
    if old:
        assert read_artifact(tmp_path / "out") == before


def test_a_folder_that_may_not_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write the artifact"):
        write_linear(tmp_path / "file" / "out")


@pytest.mark.parametrize("names", [[], ["lighten.json"], [".hidden"], ["a b"]], ids=str)
def test_files_with_odd_names_are_not_written(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ArtifactError, match="plain names"):
        write_linear(tmp_path / "out", write_files=lambda to: [(to / name).touch() for name in names])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", "a\\b", "C:x", MANIFEST])
def test_a_manifest_cannot_name_a_file_outside(tmp_path: Path, name: str) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "secret").write_text("secret")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    rewrite(tmp_path / "out", files={**manifest["files"], name: {"sha256": "0", "size_bytes": 6}})
    with pytest.raises(ArtifactError, match="plain file names"):
        read_artifact(tmp_path / "out")


def test_links_and_unlisted_files_are_refused(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    model = tmp_path / "out" / "model.onnx"
    (tmp_path / "out" / "more.data").touch()
    with pytest.raises(ArtifactError, match=r"more\.data.*does not list"):
        read_artifact(tmp_path / "out")
    (tmp_path / "out" / "more.data").unlink()
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="a link"):
        read_artifact(tmp_path / "out")
    model.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_artifact(tmp_path / "out")


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    for name in ("model.onnx", MANIFEST):
        path = tmp_path / "out" / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ArtifactError, match="plain files only"):
            read_artifact(tmp_path / "out")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_named(tmp_path: Path, version: Any) -> None:
    write_linear(tmp_path / "out")
    rewrite(tmp_path / "out", version=version)
    with pytest.raises(ArtifactError, match=f"format version {version!r}"):
        read_artifact(tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [{"name": "x", "dtype": "object", "shape": [1]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]},
        {"inputs": 3},
        {"outputs": ["y"]},
        {"options": 5},
        {"files": []},
        {"files": {"model.onnx": {"sha256": "0"}}},
        {"plan": {"version": 99}},
        {"plan": {"version": 1, "layers": 3}},
        {"notes": None},
        {"format": "tar"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_linear(tmp_path / "out")
    rewrite(tmp_path / "out", **changes)
    with pytest.raises(ArtifactError, match=r"lighten\.json"):
        read_artifact(tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', "\ud800", '{"a": 1e999}']
)
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"lighten\.json"):
        read_artifact(tmp_path / "out")


def test_what_is_no_artifact_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            read_artifact(path)


def test_numpy_floats_are_no_notes(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_linear(tmp_path / "out", notes={"drop": np.float32(0.1)})
    assert not list(tmp_path.iterdir())


def test_every_file_reaches_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lighten.runtime import folder as module

    synced: list[str] = []
    monkeypatch.setattr(module, "_sync", lambda path: synced.append(path.name))

    def fill(to: Path) -> None:
        (to / "inner").mkdir()
        (to / "inner" / "file").write_text("x")

    module.write_folder(tmp_path / "out", fill, lambda _: None)
    assert synced[:2] in (["inner", "file"], ["file", "inner"])
    assert synced[2].startswith(".out.writing-")
    assert synced[3:] == [tmp_path.name]
