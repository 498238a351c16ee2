import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lighten.errors import ArtifactError, ConfigError
from lighten.metric import ACCURACY, Metric, Scores
from lighten.plan import Plan
from lighten.search.candidate import Candidate, compared, store, stored
from lighten.search.study import Spec, Study

BASELINE = Scores(ACCURACY, 8, torch.ones(8, dtype=torch.float64))
SPEC = Spec("zeros", 3, 5)


def candidate(folder: Path, name: str = "it", right: int = 6) -> Candidate:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").write_text("weights")
    scores = Scores(ACCURACY, 8, (torch.arange(8) < right).double())
    return compared(Candidate(name=name, path=folder, plan=Plan(ratio=0.5), size_bytes=7), scores, BASELINE)


def test_a_candidate_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = [candidate(tmp_path / "a"), Candidate(name="failed", note="it broke")]
    store(before, tmp_path / "kept")
    again = stored(tmp_path / "kept", ACCURACY, BASELINE)
    assert again[1] == before[1]
    assert again[0].path == tmp_path / "kept" / "0"
    assert (again[0].path / "model").read_text() == "weights"
    assert (again[0].drop, again[0].drop_bound, again[0].plan) == (before[0].drop, before[0].drop_bound, before[0].plan)


def test_scores_of_a_metric_of_the_whole_set_are_kept_too(tmp_path: Path) -> None:
    metric = Metric("rmse", lambda o, t: (o - t).square().mean().sqrt(), higher_is_better=False)
    x = torch.linspace(0, 1, 20)
    base, worse = Scores(metric, 20, None, x, x + 0.1), Scores(metric, 20, None, x, x + 0.2)
    (tmp_path / "a").mkdir()
    made = compared(Candidate(name="it", path=tmp_path / "a", plan=Plan()), worse, base)
    store([made], tmp_path / "kept")
    assert stored(tmp_path / "kept", metric, base)[0].drop == made.drop


@pytest.mark.parametrize("damage", ["candidate.json", "0.safetensors"])
def test_a_damaged_trial_is_refused(damage: str, tmp_path: Path) -> None:
    store([candidate(tmp_path / "a")], tmp_path / "kept")
    (tmp_path / "kept" / damage).write_bytes(b"{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        stored(tmp_path / "kept", ACCURACY, BASELINE)


def test_a_finished_trial_is_found_by_the_next_process(tmp_path: Path) -> None:
    study = Study(tmp_path / "work", {"task": "t"})
    with study.trial(SPEC) as trial:
        assert study.is_running(SPEC)
        assert study.finished(SPEC, ACCURACY, BASELINE) is None
        store([candidate(tmp_path / "a")], trial.folder)
        trial.finish([candidate(tmp_path / "a")], cost=2.0)
    again = Study(tmp_path / "work", {"task": "t"}, resume=True)
    found = again.finished(SPEC, ACCURACY, BASELINE)
    assert found is not None
    assert [c.name for c in found] == ["it"]
    assert again.finished(replace(SPEC, step=4), ACCURACY, BASELINE) is None
    assert [c.name for c in again.all_finished(ACCURACY, BASELINE)] == ["it"]
    assert again.once("ms", lambda: 2.0) == 2.0
    assert Study(tmp_path / "work", {"task": "t"}, resume=True).once("ms", lambda: 3.0) == 2.0


def test_a_trial_that_fails_is_not_finished(tmp_path: Path) -> None:
    study = Study(tmp_path / "work", {})
    with pytest.raises(RuntimeError), study.trial(SPEC):
        raise RuntimeError("out of memory")
    assert study.finished(SPEC, ACCURACY, BASELINE) is None
    assert not study.is_running(SPEC)


def test_another_search_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no search to resume"):
        Study(tmp_path / "work", {}, resume=True)
    Study(tmp_path / "work", {"task": "a", "seed": 0})
    with pytest.raises(ConfigError, match="something else: task differ"):
        Study(tmp_path / "work", {"task": "b", "seed": 0}, resume=True)
    Study(tmp_path / "work", {"task": "b", "seed": 0})  # without resume it is replaced


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"other things \(thesis.tex\)"):
        Study(tmp_path, {})
    assert (tmp_path / "thesis.tex").exists()


def test_a_storage_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Optuna cannot open"):
        Study(tmp_path / "work", {}, storage="nonsense://nowhere")


SEARCH = """
import sys
sys.path.insert(0, {root!r})
import lighten
from lighten.search.config import SearchConfig
from tests.tiny import tiny_task
config = SearchConfig(round_to=4, epochs=2, long_factor=2, schemes=(None,), max_trials=8)
result = lighten.compress(tiny_task(), max_drop=0.03, minimize="size", out_dir=sys.argv[1], threads=1, config=config,
                          resume="resume" in sys.argv)
for c in result.data["candidates"]:
    print(c["name"], c["size_bytes"], c["metric"]["value"], c["chosen"])
"""


@pytest.mark.parametrize("kills", [3])
def test_killed_at_random_moments_and_resumed_it_finds_the_same(kills: int, tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(SEARCH.format(root=str(Path(__file__).parents[2]))))
    environment = {**os.environ, "LIGHTEN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(*args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), *args], stdout=subprocess.PIPE, text=True, env=environment
        )

    undisturbed = start(str(tmp_path / "one"))
    wanted, _ = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0
    assert len(wanted.splitlines()) >= 3
    other, begun = str(tmp_path / "two"), False
    for i in range(kills):
        process = start(other, *(["resume"] if begun else []))
        database = tmp_path / "two.search" / "study.db"
        deadline = time.monotonic() + 120
        while not database.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.5 + 2.1 * i)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        begun = database.exists()
    last = start(other, "resume")
    found, _ = last.communicate(timeout=600)
    assert last.returncode == 0
    assert found == wanted
