from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lighten.errors import ConfigError
from lighten.runtime import final as module
from lighten.runtime.final import Final, FinalConfig, Finalist, first_of_the_best, run_final
from lighten.runtime.measure import LatencySample

X = np.zeros((1, 3), "float32")
# One thread takes 1.0 ms in both states of a machine; two take 0.6 where its cores are close, 1.1 where they are far.
CLOSE, FAR = (1.0, 0.6), (1.0, 1.1)


class Stage:
    """Stands in for measure_latency and sleep: rounds of given times a call, and a log of what was asked."""

    def __init__(self, rounds: Sequence[Sequence[float]]) -> None:
        self.rounds = list(rounds)
        self.slept: list[float] = []
        self.processes: list[int] = []

    def measure(self, artifacts: dict[str, Path], *_: Any, processes: int, **__: Any) -> dict[str, LatencySample]:
        self.processes.append(processes)
        times = self.rounds[len(self.processes) - 1]
        return {
            name: LatencySample(blocks_ms=((np.full(3, ms),) * 4,) * processes)
            for name, ms in zip(artifacts, times, strict=True)
        }


def run(
    monkeypatch: pytest.MonkeyPatch, times: Sequence[Sequence[float]], looked: Sequence[float], **settings: Any
) -> tuple[Final, Stage]:
    stage = Stage(times)
    monkeypatch.setattr(module, "measure_latency", stage.measure)
    monkeypatch.setattr(module.time, "sleep", stage.slept.append)
    names = ("one", "two", "three")[: len(looked)]
    finalists = {name: Finalist(Path(name), 1, ms) for name, ms in zip(names, looked, strict=True)}
    return run_final(finalists, [X], FinalConfig(**settings)), stage


def test_a_steady_machine_gets_two_rounds_with_a_pause_between(monkeypatch: pytest.MonkeyPatch) -> None:
    found, stage = run(monkeypatch, [CLOSE] * 2, CLOSE)
    assert (found.winner, found.rounds, found.is_steady) == ("two", 2, True)
    assert (stage.slept, stage.processes) == ([5.0], [3, 3])
    assert len(found.samples["one"].blocks_ms) == 6
    assert found.round_ms == {"one": (1.0,) * 3, "two": pytest.approx((0.6,) * 3)}


def test_a_state_counts_by_the_share_of_rounds_it_was_seen_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of five rounds were far: the median of all calls of `two` is 1.1, its mean 0.9."""
    found, stage = run(monkeypatch, [FAR, CLOSE, FAR, FAR, CLOSE], FAR)
    assert (found.winner, found.rounds, found.is_steady) == ("two", 5, False)
    assert found.samples["two"].median == 1.1
    assert found.samples["two"].mean == pytest.approx(0.9)
    assert stage.slept == [5.0] * 4
    rarely_close, _ = run(monkeypatch, [(1.0, 0.9), FAR, FAR, FAR, FAR], FAR)
    assert rarely_close.winner == "one"
    assert not rarely_close.is_steady


def test_a_look_that_saw_another_state_asks_for_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(monkeypatch, [FAR] * 5, CLOSE)
    assert (found.winner, found.rounds, found.is_steady) == ("one", 5, False)
    assert found.samples["two"].mean == pytest.approx(1.1)  # the look, one process, is no part of it


@pytest.mark.parametrize(("moved", "is_steady"), [(1.14, True), (1.16, False)])
def test_drift_is_what_is_called_unsteady(monkeypatch: pytest.MonkeyPatch, moved: float, is_steady: bool) -> None:
    found, _ = run(monkeypatch, [(1.0, 2.0), *[(1.0, 2.0 * moved)] * 4], (1.0, 2.0))
    assert (found.winner, found.is_steady) == ("one", is_steady)
    strict, _ = run(monkeypatch, [(1.0, 2.0), *[(1.0, 2.0 * moved)] * 4], (1.0, 2.0), drift=1.1)
    assert not strict.is_steady


def test_rounds_that_choose_otherwise_are_unsteady_within_the_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(monkeypatch, [(1.0, 1.05), (1.1, 1.0), *[(1.0, 1.05)] * 3], (1.0, 1.05))
    assert (found.winner, found.rounds, found.is_steady) == ("one", 5, False)
    tied, _ = run(monkeypatch, [(1.0, 1.02), (1.02, 1.0)], (1.0, 1.0))
    assert (tied.rounds, tied.is_steady) == (2, True)


def test_rounds_processes_and_the_pause_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    stage = Stage([CLOSE, FAR, CLOSE])
    monkeypatch.setattr(module, "measure_latency", stage.measure)
    monkeypatch.setattr(module.time, "sleep", stage.slept.append)
    config = FinalConfig(rounds=1, most_rounds=3, processes=2, pause_s=0.5)
    finalists = {"one": Finalist(Path("1"), 1, 1.0), "two": Finalist(Path("2"), 2, 1.1)}
    found = run_final(finalists, [X], config, on_round=numbers.append)
    assert (found.rounds, stage.slept, stage.processes, numbers) == (3, [0.5, 0.5], [2, 2, 2], [1, 2, 3])
    once, _ = run(monkeypatch, [CLOSE], CLOSE, rounds=1)
    assert once.rounds == 1


def test_one_finalist_is_nothing_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(monkeypatch, [(1.0,), (2.0,)], (1.0,))
    assert (found.winner, found.rounds, found.is_steady) == ("one", 2, False)


def test_a_tie_by_the_mean_goes_to_the_first() -> None:
    def sample(*rounds_ms: float) -> LatencySample:
        return LatencySample(blocks_ms=tuple((np.full(3, ms),) * 2 for ms in rounds_ms))

    assert first_of_the_best({"a": sample(1.0, 1.0, 1.04), "b": sample(1.0, 1.04, 0.99)}) == "a"
    assert first_of_the_best({"a": sample(1.0, 1.0, 2.0), "b": sample(1.01, 1.01, 1.01)}) == "b"  # medians say a


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds=0 is not between 1 and most_rounds=5"),
        ({"rounds": 3, "most_rounds": 2}, "rounds=3 is not between 1 and most_rounds=2"),
        ({"processes": 0}, "processes=0 is below 1"),
        ({"pause_s": -1.0}, "pause_s=-1.0 is not a number of seconds"),
        ({"pause_s": float("nan")}, "pause_s=nan is not a number of seconds"),
        ({"drift": 0.9}, "drift=0.9 is below 1"),
        ({"drift": float("nan")}, "drift=nan is below 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinalConfig(**settings)
