from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lighten.errors import ArtifactError
from lighten.runtime import contest as module
from lighten.runtime import final as final_module
from lighten.runtime.contest import Candidate, contest, decide, difference, look
from lighten.runtime.final import FinalConfig
from lighten.runtime.measure import LatencySample
from tests.runtime.models import WEIGHT, write_linear

X = np.arange(6, dtype="float32").reshape(2, 3)
Y = X @ WEIGHT
SHORT = FinalConfig(most_rounds=2, processes=2, pause_s=0.0)


def candidate(folder: Path, threads: int = 1) -> Candidate:
    return Candidate(name=f"{folder.name} × {threads}", path=folder, threads=threads)


def test_what_fails_or_disagrees_is_out(tmp_path: Path) -> None:
    write_linear(tmp_path / "right")
    write_linear(tmp_path / "wrong", WEIGHT * 1.01)
    write_linear(tmp_path / "broken", write_files=lambda to: (to / "model.onnx").write_bytes(b"no model"))
    names: list[str] = []
    found = contest(
        [candidate(tmp_path / name) for name in ("wrong", "broken", "right")],
        [X],
        [Y],
        config=SHORT,
        on_progress=names.append,
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
    loose = contest([candidate(tmp_path / "wrong")], [X], [Y], tolerance=0.02, config=SHORT)
    assert loose.winner.candidate.name == "wrong × 1"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for measure_latency: asked, what it was asked; first, final: the median of each candidate."""
    stand_in = SimpleNamespace(asked=[], first={}, final={}, jitter=0.0)

    def fake(artifacts: dict[str, Path], inputs: Any, *, threads: Any, **_: Any) -> dict[str, LatencySample]:
        stand_in.asked.append((list(artifacts), threads))
        times = stand_in.first if isinstance(threads, int) else stand_in.final
        rng = np.random.default_rng(0)
        blocks = {name: times[name] * np.exp(stand_in.jitter * rng.standard_normal((5, 4, 1))) for name in artifacts}
        return {name: LatencySample(blocks_ms=tuple(map(tuple, blocks[name])), outputs=(Y,)) for name in artifacts}

    for each in (module, final_module):
        monkeypatch.setattr(each, "measure_latency", fake)
    return stand_in


def entrants(names: str) -> list[Candidate]:
    return [Candidate(name=name, path=Path(name), threads=2) for name in names]


def test_the_fastest_of_the_final_wins_and_the_rest_keep_their_first_times(timed: Any) -> None:
    timed.first = {"a": 1.9, "b": 1.0, "c": 1.2, "d": 9.0}
    timed.final = {"a": 3.0, "b": 2.0, "c": 1.0}
    found = contest(entrants("abcd"), [X], [Y], config=SHORT)
    assert timed.asked[-1] == (["a", "b", "c"], {"a": 2, "b": 2, "c": 2})
    assert found.winner.candidate.name == "c"
    slowdowns = [None if trial.slowdown is None else trial.slowdown.value for trial in found.trials]
    assert slowdowns == [3.0, 2.0, 1.0, None]
    assert found.trials[3].median == 9.0
    two = contest(entrants("abcd"), [X], [Y], finalists=2, config=SHORT)
    assert timed.asked[-1][0] == ["b", "c"]
    assert two.winner.candidate.name == "c"


def test_the_hopeless_stay_out_of_the_final_unless_they_are_wanted(timed: Any) -> None:
    timed.first = timed.final = {"a": 2.1, "b": 1.0, "c": 1.5}
    trials = look(entrants("abc"), [X], [Y], tolerance=1e-3)
    assert [trial.slowdown is not None for trial in decide(trials, [X], config=SHORT).trials] == [False, True, True]
    found = decide(trials, [X], always=["a"], config=SHORT)
    assert timed.asked[-1][0] == ["a", "b", "c"]
    assert found.winner.candidate.name == "b"


def test_the_final_is_told_as_it_goes_and_what_it_saw_is_kept(timed: Any) -> None:
    timed.first = {"a": 1.0, "b": 1.1, "c": 4.0}
    timed.final = {"a": 1.0, "b": 1.2}
    numbers: list[int] = []
    trials = look(entrants("abc"), [X], [Y], tolerance=1e-3)
    found = decide(trials, [X], config=SHORT, on_round=numbers.append)
    assert (numbers, found.rounds, found.is_steady) == ([1, 2], 2, True)
    np.testing.assert_allclose(found.trials[1].round_ms, [1.1, 1.2, 1.2])
    assert found.trials[2].round_ms == ()
    assert found.winner.sample is not None
    assert len(found.winner.sample.blocks_ms) == 10  # five processes of each round
    timed.final = {"a": 1.0, "b": 1.3}  # 1.18 times what the look saw
    assert not decide(trials, [X], config=SHORT).is_steady


@pytest.mark.parametrize(
    ("medians", "jitter", "winner"),
    [
        ({"a": 1.0, "b": 1.0}, 0.05, "a"),  # not told apart: the first
        ({"a": 1.02, "b": 1.0}, 0.0, "b"),  # little, but shown
        ({"a": 1.5, "b": 1.0}, 1.0, "b"),  # not shown, but the estimate is far off
    ],
)
def test_a_tie_goes_to_the_first(timed: Any, medians: dict[str, float], jitter: float, winner: str) -> None:
    timed.first = timed.final = medians
    timed.jitter = jitter
    assert contest(entrants("ab"), [X], [Y], config=SHORT).winner.candidate.name == winner


def test_hand_worked_differences() -> None:
    y = np.array([3.0, 4.0])
    assert difference([y], [y]) == 0.0
    assert difference([y + 0.5], [y]) == pytest.approx(0.5 / np.sqrt(12.5))
    assert difference([np.array([1.0, -np.inf, np.nan])], [np.array([1.0, -np.inf, np.nan])]) == 0.0
    assert difference([np.array([1.0, np.inf])], [np.array([1.0, 5.0])]) == np.inf
    assert difference([np.array([1.0, np.nan])], [np.array([1.0, 5.0])]) == np.inf
    assert difference([y, y], [y]) == difference([y[:1]], [y]) == np.inf
    assert difference([np.zeros(2)], [np.zeros(2)]) == 0.0
    assert difference([y, 1e-6 * (y + 0.5)], [y, 1e-6 * y]) == pytest.approx(0.5 / np.sqrt(12.5))  # the worst output
    assert difference([np.full(2, 0.5)], [np.zeros(2)]) == 0.5
