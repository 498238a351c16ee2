from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lighten.errors import ArtifactError
from lighten.runtime import contest as module
from lighten.runtime.contest import Candidate, contest, difference
from lighten.runtime.measure import LatencySample
from tests.runtime.models import WEIGHT, write_linear

X = np.arange(6, dtype="float32").reshape(2, 3)
Y = X @ WEIGHT


def candidate(folder: Path, threads: int = 1) -> Candidate:
    return Candidate(name=f"{folder.name} × {threads}", path=folder, threads=threads)


def test_what_fails_or_disagrees_is_out(tmp_path: Path) -> None:
    write_linear(tmp_path / "right")
    write_linear(tmp_path / "wrong", WEIGHT * 1.01)
    write_linear(tmp_path / "broken", write_files=lambda to: (to / "model.onnx").write_bytes(b"no model"))
    names: list[str] = []
    found = contest(
        [candidate(tmp_path / name) for name in ("wrong", "broken", "right")], [X], [Y], on_progress=names.append
    )
    assert names == ["wrong × 1", "broken × 1", "right × 1"]
    assert found.winner.candidate.name == "right × 1"
    assert [bool(trial.refused) for trial in found.trials] == [True, True, False]
    assert "differ by 0.01 of their size" in found.trials[0].refused
    assert "cannot load" in found.trials[1].refused
    assert found.winner.difference == 0.0
    assert found.winner.slowdown is not None
    assert found.winner.slowdown.value == 1.0
    with pytest.raises(ArtifactError, match=r"None of 1 candidates.*wrong × 1: its outputs differ"):
        contest([candidate(tmp_path / "wrong")], [X], [Y])
    loose = contest([candidate(tmp_path / "wrong")], [X], [Y], tolerance=0.02)
    assert loose.winner.candidate.name == "wrong × 1"


def test_the_fastest_of_the_final_wins_and_the_rest_keep_their_first_times(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"a": 4.0, "b": 1.0, "c": 2.0, "d": 9.0}
    final = {"a": 3.0, "b": 2.0, "c": 1.0}
    asked: list[tuple[list[str], Any]] = []

    def fake(artifacts: dict[str, Path], inputs: Any, *, threads: Any, **_: Any) -> dict[str, LatencySample]:
        asked.append((list(artifacts), threads))
        times = first if isinstance(threads, int) else final
        return {
            name: LatencySample(blocks_ms=tuple((np.full(3, times[name]),) * 4 for _ in range(5)), outputs=(Y,))
            for name in artifacts
        }

    monkeypatch.setattr(module, "measure_latency", fake)
    found = contest([Candidate(name=name, path=Path(name), threads=2) for name in "abcd"], [X], [Y])
    assert asked[-1] == (["b", "c", "a"], {"b": 2, "c": 2, "a": 2})
    assert found.winner.candidate.name == "c"
    slowdowns = [None if trial.slowdown is None else trial.slowdown.value for trial in found.trials]
    assert slowdowns == [3.0, 2.0, 1.0, None]
    two = contest([Candidate(name=name, path=Path(name), threads=2) for name in "abcd"], [X], [Y], finalists=2)
    assert asked[-1][0] == ["b", "c"]
    assert two.winner.candidate.name == "c"


def test_hand_worked_differences() -> None:
    y = np.array([3.0, 4.0])
    assert difference([y], [y]) == 0.0
    assert difference([y + 0.5], [y]) == pytest.approx(0.5 / np.sqrt(12.5))
    assert difference([np.array([1.0, -np.inf, np.nan])], [np.array([1.0, -np.inf, np.nan])]) == 0.0
    assert difference([np.array([1.0, np.inf])], [np.array([1.0, 5.0])]) == np.inf
    assert difference([np.array([1.0, np.nan])], [np.array([1.0, 5.0])]) == np.inf
    assert difference([y, y], [y]) == difference([y[:1]], [y]) == np.inf
    assert difference([np.zeros(2)], [np.zeros(2)]) == 0.0
    assert difference([np.full(2, 0.5)], [np.zeros(2)]) == 0.5
