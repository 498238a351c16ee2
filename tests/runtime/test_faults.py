"""What happens to an artifact in the world: bits flip, copies stop half-way, files are swapped, writers are killed."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.artifact import Artifact, read_artifact
from lighten.runtime.manifest import MANIFEST
from lighten.runtime.runner import load
from tests.runtime.models import WEIGHT, write_linear

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from tests.runtime.models import WEIGHT, write_linear

print("ready", flush=True)
while True:
    write_linear(Path(sys.argv[1]), notes={"writer": "child", "padding": "x" * 100_000})
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_linear(
        tmp_path_factory.mktemp("artifact") / "out", notes={"why": "a flip may land in here", "n": 0.125}
    )


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(written: Artifact, name: str, data: st.DataObject) -> None:
    path = written.path / name
    intact = path.read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1))
    value = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(intact[:place] + bytes([value]) + intact[place + 1 :])
        try:
            found = read_artifact(written.path)
        except ArtifactError:
            assert value != intact[place]
        else:
            assert found == written
            assert name == MANIFEST or value == intact[place]  # white space is the manifest's only slack
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx"])
@settings(deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_file_that_was_cut_off_is_refused(written: Artifact, name: str, share: float) -> None:
    path = written.path / name
    intact = path.read_bytes()
    kept = min(int(len(intact) * share), len(intact.rstrip()) - 1)  # a lost last newline loses nothing
    try:
        path.write_bytes(intact[:kept])
        with pytest.raises(ArtifactError, match=name):
            read_artifact(written.path)
    finally:
        path.write_bytes(intact)


def test_a_model_of_another_artifact_is_refused(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    write_linear(tmp_path / "b", WEIGHT * 2)
    (tmp_path / "b" / "model.onnx").replace(tmp_path / "a" / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx.*another SHA-256.*replaced"):
        load(tmp_path / "a")


@settings(deadline=None)
@given(text=st.text(max_size=50) | st.binary(max_size=50).map(lambda raw: raw.decode("latin-1")))
def test_any_other_manifest_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError):
        read_artifact(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("exchange", [True, False], ids=["swapped", "moved aside"])
def test_a_writer_killed_at_any_moment_leaves_a_whole_artifact(tmp_path: Path, exchange: bool) -> None:
    """Fifteen kills. With a swap there is always an artifact; without, there may be none until the next writer."""
    out = tmp_path / "out"
    write_linear(out, notes={"writer": "first"})
    script = WRITER if exchange else "import lighten.runtime.folder as f; f._exchange = lambda *_: False" + WRITER
    rng = random.Random(0)
    for _ in range(15):
        child = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.wait()
        child.stdout.close()
        if exchange or out.exists():
            assert read_artifact(out).notes["writer"] in ("first", "child")
    write_linear(out, notes={"writer": "last"})
    assert read_artifact(out).notes == {"writer": "last"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the dead left is gone


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_an_artifact_that_was_moved_aside_is_found_again(tmp_path: Path) -> None:
    """The writer dies between the two renames; the next one fails, and must bring the old artifact back."""
    out = tmp_path / "out"
    before = write_linear(out)
    out.rename(tmp_path / ".out.writing-0123456789abcdef.old")

    def fail(_: Path) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        write_linear(out, write_files=fail)
    assert read_artifact(out) == before


def test_a_living_writer_is_not_disturbed(tmp_path: Path) -> None:
    """A second writer of the same artifact starts and ends while the first is still at it."""
    out = tmp_path / "out"

    def slow(to: Path) -> None:
        (to / "model.onnx").write_bytes(b"first")
        write_linear(out, notes={"writer": "second"})
        assert (to / "model.onnx").read_bytes() == b"first"

    write_linear(out, notes={"writer": "first"}, write_files=slow)
    assert read_artifact(out).notes == {"writer": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_readers_see_old_or_new_while_it_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_linear(out, WEIGHT)
    stop = threading.Event()

    def replace() -> None:
        for i in range(60):
            write_linear(out, WEIGHT * (1 + i % 2))
        stop.set()

    writer = threading.Thread(target=replace)
    writer.start()
    x = np.ones((1, 3), "float32")
    seen = 0
    try:
        while not stop.is_set():
            factor = load(out)(x)[0, 0] / WEIGHT[:, 0].sum()
            assert factor in (1.0, 2.0)
            seen += 1
    finally:
        writer.join()
    assert seen


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fill(_: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(ArtifactError, match="No space left on device"):
        write_linear(tmp_path / "out", write_files=fill)
    assert not list(tmp_path.iterdir())
