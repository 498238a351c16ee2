from pathlib import Path

import numpy as np
import pytest

from lighten.runtime import throughput as module
from lighten.runtime.measure import ratio_interval
from lighten.runtime.throughput import Crew, compare_crews, measure_throughput
from tests.runtime.models import write_linear

X = np.arange(6, dtype="float32").reshape(2, 3)


def test_throughput_counts_samples_by_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_linear(tmp_path / "out")
    found = measure_throughput(tmp_path / "out", [X], n_samples=2, seconds=0.05, max_workers=3)
    assert [point.workers for point in found] == [1, 2, 3]
    assert found[0].efficiency == 1.0
    for point in found:
        assert point.efficiency == pytest.approx(point.samples_per_s / point.workers / found[0].samples_per_s)
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    assert len(measure_throughput(tmp_path / "out", [X], n_samples=2, seconds=0.01)) == 1


def test_crews_take_turns_in_new_processes(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    crews = {f"{n} × 1": Crew(path=tmp_path / "out", workers=n, threads=1) for n in (1, 2)}
    found = compare_crews(crews, [X], rounds=2, seconds=0.02)
    assert list(found) == ["1 × 1", "2 × 1"]
    for sample in found.values():
        assert [len(windows) for windows in sample.blocks_ms] == [module.WINDOWS] * 2
        assert sample.median > 0
    assert ratio_interval(*found.values()).high < float("inf")  # six windows are enough for an interval


def test_threads_leave_room_for_fewer_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_linear(tmp_path / "out")
    monkeypatch.setattr(module, "usable_cores", lambda: 5)
    found = measure_throughput(tmp_path / "out", [X], n_samples=2, threads=2, seconds=0.01)
    assert [point.workers for point in found] == [1, 2]
