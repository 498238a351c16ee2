from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from lighten.errors import ConfigError
from lighten.metric import Interval
from lighten.search import sweep as module
from lighten.search.sweep import Candidate, Progress, SweepConfig, sweep
from lighten.task import evaluate
from tests.tiny import tiny_task


def found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drop_of: dict[float, Interval], sparsities: tuple[float, ...] = ()
) -> list[Candidate]:
    """What a sweep of ratios 0, 0.25, 0.5 and of sparsities finds when each has the given drop; nothing is built."""

    def lowered(*args: object) -> Candidate:
        trial = args[3]
        assert isinstance(trial, Candidate)
        return replace(trial, drop=drop_of[trial.sparsity or trial.ratio])

    monkeypatch.setattr(module, "_recovered", lambda *args: None)
    monkeypatch.setattr(module, "_lowered", lowered)
    task = tiny_task()
    baseline = evaluate(task.model, task.selection, task.metric, 100)
    told: list[Progress] = []
    config = SweepConfig(ratios=(0.0, 0.25, 0.5), sparsities=sparsities)
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
    assert all(c.note.startswith("not tried: 75 % of channels, w8a8 already drops too much") for c in candidates[3:])
    assert len(candidates) == 5


def test_zeros_come_last_and_stop_at_a_hopeless_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fine = dict.fromkeys((0.0, 0.25, 0.5, 0.8), Interval(0.0, -0.01, 0.01))
    candidates = found(monkeypatch, tmp_path, fine | {0.9: Interval(0.05, 0.02, 0.08)}, (0.8, 0.9, 0.95))
    found_of = [(c.sparsity, c.scheme, c.note[:9]) for c in candidates[5:]]
    assert found_of == [(0.8, "w8", ""), (0.9, "w8", ""), (0.95, "w8", "not tried")]


def test_a_model_that_the_engine_lacks_operators_for_is_not_trained_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_recovered", lambda *args: pytest.fail("it was trained"))
    task = tiny_task(model=nn.Sequential(nn.Flatten(), nn.GroupNorm(4, 64), nn.Linear(64, 4)))
    baseline = evaluate(task.model, task.selection, task.metric, 100)
    config = SweepConfig(ratios=(), sparsities=(0.8, 0.9))
    notes = [c.note for c in sweep(task, baseline, config, 0.01, tmp_path, lambda progress: None)]
    assert len(notes) == 2
    assert all(note.startswith("not tried: The native engine cannot compute 'aten.group_norm") for note in notes)


def test_a_drop_that_may_be_noise_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unsure = dict.fromkeys((0.0, 0.25, 0.5), Interval(0.05, 0.005, 0.1))
    assert not any(c.note for c in found(monkeypatch, tmp_path, unsure))


@pytest.mark.parametrize("ratios", [(1.0,), (-0.1,), (0.5, 0.25), (0.5, 0.5)])
def test_ratios_ascend_in_their_range(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must be ascending numbers"):
        SweepConfig(ratios=ratios)
    with pytest.raises(ConfigError, match="must be ascending numbers"):
        SweepConfig(sparsities=ratios)


def test_something_has_to_be_tried() -> None:
    with pytest.raises(ConfigError, match="nothing to try"):
        SweepConfig(ratios=(), sparsities=())
