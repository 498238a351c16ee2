"""compress end to end on a task that trains in a second."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import lighten
from lighten.errors import ArtifactError, CaptureError, ConfigError, TaskError
from lighten.metric import Metric, Scores
from lighten.plan import Plan
from lighten.search import driver
from lighten.search.candidate import Candidate
from lighten.search.config import SearchConfig
from lighten.search.loop import Result
from lighten.search.realize import Variant, default_epochs, training
from lighten.task import Task, evaluate
from tests.tiny import images, tiny_task

SMALL = SearchConfig(ratios=(0.0, 0.5), sparsities=(), epochs=3)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return by_size(tmp_path_factory.mktemp("out") / "tiny")


def by_size(out_dir: Path) -> Result:
    # By size, for what is faster than what differs from run to run, above all on so small a network.
    return lighten.compress(tiny_task(), max_drop=0.05, minimize="size", out_dir=out_dir, threads=1, config=SMALL)


def test_result_json_holds_what_the_design_promises(result: Result) -> None:
    data = json.loads((result.path / "result.json").read_text())
    assert data == json.loads(json.dumps(result.data))
    assert set(data) >= {
        "task",
        "seed",
        "baseline",
        "compressed",
        "drop",
        "speedup",
        "size_ratio",
        "trials",
        "environment",
    }
    for side in ("baseline", "compressed"):
        assert set(data[side]) == {"metric", "latency_ms", "size_bytes", "n_params", "macs"}
        assert set(data[side]["metric"]) == {"name", "value", "ci95", "n"}
        assert set(data[side]["latency_ms"]) == {"median", "p90", "runtime", "threads", "batch"}
        assert data[side]["metric"]["n"] == 200
    assert data["trials"] == len(data["candidates"]) == 3  # the float original is the baseline
    assert sum(candidate["chosen"] for candidate in data["candidates"]) == 1
    assert not any(candidate["note"] for candidate in data["candidates"])


def test_the_figures_are_those_of_the_artifact_on_disk(result: Result) -> None:
    runner = lighten.load(result.path / "artifact")
    data = result.data
    assert data["compressed"]["size_bytes"] == sum(f.stat().st_size for f in (result.path / "artifact").iterdir())
    scores = evaluate(runner, TensorDataset(*images(200, 3)), tiny_task().metric, 50)
    assert scores.interval.value == data["compressed"]["metric"]["value"]
    assert data["drop"]["value"] == pytest.approx(
        data["baseline"]["metric"]["value"] - data["compressed"]["metric"]["value"]
    )
    assert runner.artifact.plan == Plan.load(result.path / "plan.yaml") == result.plan


def test_the_best_is_smaller_and_within_the_drop(result: Result) -> None:
    data = result.data
    assert result.accepted
    assert data["drop"]["value"] <= 0.05
    assert data["compressed"]["size_bytes"] < data["baseline"]["size_bytes"] / 2
    assert "<html" in (result.path / "report.html").read_text()


def test_the_same_seed_gives_the_same_models_and_metrics(result: Result, tmp_path: Path) -> None:
    again = by_size(tmp_path / "again").data
    for one, other in zip(result.data["candidates"], again["candidates"], strict=True):
        assert one["metric"] == other["metric"]
        assert one["drop"] == other["drop"]
        assert one["chosen"] == other["chosen"]
        assert (one["n_params"], one["macs"]) == (other["n_params"], other["macs"])


def test_zeros_in_blocks_run_on_the_native_engine(tmp_path: Path) -> None:
    sparse = SearchConfig(ratios=(), sparsities=(0.5, 0.9), epochs=3)
    result = lighten.compress(
        tiny_task(), max_drop=0.05, minimize="size", out_dir=tmp_path / "out", threads=1, config=sparse
    )
    found = [(c["sparsity"], c["scheme"], c["note"]) for c in result.data["candidates"]]
    assert found == [(0.5, "w8", ""), (0.9, "w8", "")]
    assert result.accepted
    assert result.data["compressed"]["latency_ms"]["runtime"] == lighten.load(result.path / "artifact").artifact.runtime
    plan = result.plan
    assert (plan.runtime, plan.granularity, plan.schedule, plan.scheme) == ("native", "block:4x1", "gradual:20", "w8")
    assert result.data["compressed"]["size_bytes"] < result.data["baseline"]["size_bytes"]


def test_nothing_within_the_budget_is_said_and_the_nearest_is_written(tmp_path: Path) -> None:
    def worse_when_compressed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Any change of the logits counts as an error: only the float original scores full marks.
        return (outputs.abs().max(1).values * 1e4 % 1).double()

    task = tiny_task(metric=Metric("oddity", worse_when_compressed), train=None, loss=None)
    result = lighten.compress(
        task,
        max_drop=0.0,
        max_size_bytes=1,
        out_dir=tmp_path / "out",
        threads=1,
        config=SearchConfig(ratios=(0.5,), schemes=("w8a8",), sparsities=()),
    )
    assert not result.accepted
    assert result.verdict.startswith(("Nothing within the budget", "Nothing that was tried"))
    assert {path.name for path in result.path.iterdir()} == {"artifact", "plan.yaml", "result.json", "report.html"}


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"other content \(thesis.tex\)"):
        lighten.compress(tiny_task(), max_drop=0.01, out_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_result_may_be_replaced(result: Result) -> None:
    before = (result.path / "result.json").stat().st_ino
    again = lighten.compress(
        tiny_task(),
        max_drop=0.05,
        out_dir=result.path,
        threads=1,
        config=SearchConfig(ratios=(0.0,), schemes=("w8a8",), sparsities=()),
    )
    assert (again.path / "result.json").stat().st_ino != before
    assert again.data["trials"] == 1
    assert sorted(path.name for path in result.path.parent.iterdir()) == ["tiny", "tiny.search"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28), "report.html")

    monkeypatch.setattr("lighten.search.loop.write_report", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        lighten.compress(
            tiny_task(),
            max_drop=0.05,
            out_dir=tmp_path / "out",
            threads=1,
            config=SearchConfig(ratios=(0.0,), schemes=("w8a8",), sparsities=()),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.search"]  # the trials, to resume from


def test_a_nan_metric_and_a_model_that_cannot_be_traced_are_refused(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    broken = Metric("broken", lambda outputs, targets: torch.full((len(targets),), float("nan")))
    with pytest.raises(TaskError, match="'broken' is NaN"):
        lighten.compress(tiny_task(metric=broken), max_drop=0.01, out_dir=tmp_path / "a")
    with pytest.raises(CaptureError, match=r"return x if x.sum"):
        lighten.compress(tiny_task(model=Branch()), max_drop=0.01, out_dir=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_small_sets_get_more_epochs() -> None:
    def epochs_and_batch(n_train: int, config: SearchConfig) -> tuple[int, int]:
        task = tiny_task(train=TensorDataset(*images(n_train, 0)))
        recipe = training(task, config, default_epochs(task, config))
        assert recipe is not None
        return recipe.epochs, recipe.batch_size

    assert epochs_and_batch(55_000, SearchConfig()) == (3, 128)
    assert epochs_and_batch(649, SearchConfig()) == (20, 32)  # 20 steps an epoch, 400 in all
    assert epochs_and_batch(3, SearchConfig())[1] == 1
    assert epochs_and_batch(649, SearchConfig(epochs=1))[0] == 1
    assert default_epochs(tiny_task(train=None, loss=None), SearchConfig()) == 0


def test_another_point_of_the_front_is_picked_without_a_search(tmp_path: Path) -> None:
    first = by_size(tmp_path / "first")
    other = next(c for c in first.data["candidates"] if not c["chosen"])
    how = {"max_drop": 0.9, "minimize": "size", "threads": 1, "work_dir": tmp_path / "first.search"}
    picked = lighten.compress(tiny_task(), out_dir=tmp_path / "out", pick=other["name"], **how)
    assert [c["name"] for c in picked.data["candidates"] if c["chosen"]] == [other["name"]]
    assert picked.data["compressed"]["size_bytes"] == other["size_bytes"]
    with pytest.raises(ConfigError, match="no candidate 'nonsense'"):
        lighten.compress(tiny_task(), out_dir=tmp_path / "out2", pick="nonsense", **how)


def test_under_another_budget_a_search_goes_on_with_the_trials_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()
    realize = driver.realize

    def counted(task: Task, baseline: Scores, variant: Variant, *more: Any, **named: Any) -> list[Candidate]:
        made.append(variant.name)
        return realize(task, baseline, variant, *more, **named)

    monkeypatch.setattr(driver, "realize", counted)
    config = SearchConfig(ratios=(0.25, 0.5), sparsities=(), schemes=(None,), epochs=3)
    how = {"threads": 1, "config": config, "work_dir": tmp_path / "work", "accept": "point"}
    strict = lighten.compress(tiny_task(), max_drop=0.0, out_dir=tmp_path / "strict", **how)
    of_strict = list(made)
    loose = lighten.compress(tiny_task(), max_drop=0.9, out_dir=tmp_path / "loose", resume=True, **how)
    assert made == ["75 % of channels", "50 % of channels"]  # none twice
    assert of_strict == made[: len(of_strict)]
    assert [(b["budget"]["max_drop"], b["task"]) for b in (strict.data, loose.data)] == [(0.0, "tiny"), (0.9, "tiny")]
    assert loose.data["trials"] == 2
    with pytest.raises(ConfigError, match="something else: minimize, max_drop of fewer bits differ"):
        lighten.compress(tiny_task(), max_drop=0.9, minimize="size", out_dir=tmp_path / "c", resume=True, **how)


def test_a_plan_is_done_again_exactly(result: Result, tmp_path: Path) -> None:
    again = lighten.compress(
        tiny_task(), max_drop=0.05, minimize="size", out_dir=tmp_path / "out", threads=1, plan=result.plan
    )
    assert again.data["compressed"]["metric"] == result.data["compressed"]["metric"]
    assert again.data["compressed"]["n_params"] == result.data["compressed"]["n_params"]
    assert not (tmp_path / "out.search").exists()
    with pytest.raises(ConfigError, match="without pick and resume"):
        lighten.compress(tiny_task(), max_drop=0.05, out_dir=tmp_path / "b", plan=result.plan, resume=True)


def test_a_time_limit_gives_the_best_so_far(tmp_path: Path) -> None:
    result = lighten.compress(
        tiny_task(), max_drop=0.05, out_dir=tmp_path / "out", threads=1, config=SearchConfig(time_limit_s=1e-3)
    )
    assert not result.accepted
    assert "The search was stopped after 0.001 s" in result.verdict
    assert result.data["trials"] == 0
    assert (result.path / "artifact" / "lighten.json").is_file()


def test_limits_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    result = lighten.compress(
        tiny_task(), max_drop=0.05, max_size_bytes=10, max_latency_ms=1e-6, out_dir=tmp_path / "out", threads=1,
        config=SearchConfig(ratios=(0.5,), schemes=(None,)),
    )  # fmt: skip
    assert not result.accepted
    assert "none meets max_latency_ms=1e-06: the fastest takes" in result.verdict
    assert "max_size_bytes=10: the smallest has" in result.verdict
