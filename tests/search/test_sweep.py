from pathlib import Path

import pytest

from lighten.errors import ConfigError
from lighten.metric import Interval
from lighten.search import sweep as module
from lighten.search.sweep import Candidate, Progress, SweepConfig, sweep
from lighten.task import evaluate
from tests.tiny import tiny_task


def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drop_of: dict[float, Interval]) -> list[Candidate]:
    """What a sweep of ratios 0, 0.25, 0.5 finds when each has the given drop, without building anything."""

    def lowered(*args: object) -> Candidate:
        ratio, scheme = args[3:5]
        assert isinstance(ratio, float)
        assert scheme is None or isinstance(scheme, str)
        return Candidate(name=f"{ratio} {scheme}", ratio=ratio, scheme=scheme, drop=drop_of[ratio])

    monkeypatch.setattr(module, "_recovered", lambda *args: None)
    monkeypatch.setattr(module, "_lowered", lowered)
    task = tiny_task()
    baseline = evaluate(task.model, task.selection, task.metric, 100)
    told: list[Progress] = []
    config = SweepConfig(ratios=(0.0, 0.25, 0.5))
    candidates = list(sweep(task, baseline, config, 0.01, tmp_path, told.append))
    assert all(0 <= progress.done <= progress.total for progress in told)
    return candidates


def test_the_float_original_is_not_a_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fine = dict.fromkeys((0.0, 0.25, 0.5), Interval(0.0, -0.01, 0.01))
    candidates = found(monkeypatch, tmp_path, fine)
    assert [(c.ratio, c.scheme) for c in candidates] == [
        (0.0, "w8a8"), (0.25, None), (0.25, "w8a8"), (0.5, None), (0.5, "w8a8")]  # fmt: skip
    assert not any(c.note for c in candidates)


def test_larger_ratios_are_not_tried_once_one_is_hopeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drops = {0.0: Interval(0.0, 0.0, 0.0), 0.25: Interval(0.05, 0.02, 0.08)}  # 0.5 would be a KeyError
    candidates = found(monkeypatch, tmp_path, drops)
    assert [c.note for c in candidates[:3]] == ["", "", ""]
    assert all(c.note.startswith("not tried: 0.25 w8a8 already drops too much") for c in candidates[3:])
    assert len(candidates) == 5


def test_a_drop_that_may_be_noise_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unsure = dict.fromkeys((0.0, 0.25, 0.5), Interval(0.05, 0.005, 0.1))
    assert not any(c.note for c in found(monkeypatch, tmp_path, unsure))


@pytest.mark.parametrize("ratios", [(), (1.0,), (-0.1,), (0.5, 0.25), (0.5, 0.5)])
def test_ratios_ascend_in_their_range(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must be ascending numbers"):
        SweepConfig(ratios=ratios)
