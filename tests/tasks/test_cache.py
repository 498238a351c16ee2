from pathlib import Path

import pytest
import torch

from lighten.errors import ArtifactError, TaskError
from lighten.tasks import cache

STATE = {"weight": torch.arange(6.0).reshape(2, 3).t(), "count": torch.tensor(7)}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LIGHTEN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lighten"),
        ({}, "/home/someone/.cache/lighten"),
    ],
    ids=["LIGHTEN_CACHE", "XDG_CACHE_HOME", "home"],
)
def test_where_it_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("LIGHTEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_dir() == Path(expected)


def test_the_key_is_the_recipe_and_not_its_order() -> None:
    path = cache.checkpoint_path("net", {"lr": 0.1, "epochs": 2})
    assert path == cache.checkpoint_path("net", {"epochs": 2, "lr": 0.1})
    assert path != cache.checkpoint_path("net", {"lr": 0.1, "epochs": 3})
    assert path.name.startswith("net-")


def test_what_is_stored_comes_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.safetensors"
    assert cache.load(path) is None
    cache.store(path, {"old": torch.zeros(1)})
    cache.store(path, STATE)
    loaded = cache.load(path)
    assert loaded is not None
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"
    cache.store(path, STATE)

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match=r"No space left on device.*LIGHTEN_CACHE"):
        cache.store(path, {"new": torch.zeros(1)})
    loaded = cache.load(path)
    assert loaded is not None
    assert loaded.keys() == STATE.keys()
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(TaskError, match=r"net\.safetensors' cannot be read.*Delete it and train again"):
        cache.load(path)
