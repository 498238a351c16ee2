"""Who makes the trials, and that it makes no difference to what is found. Nothing is trained."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.metric import Metric, Scores
from lighten.plan import Plan
from lighten.search.adapt import next_step
from lighten.search.candidate import Candidate, compared, store, stored
from lighten.search.choose import Budget
from lighten.search.config import SearchConfig
from lighten.search.driver import Course, Driver, Progress, Wanted
from lighten.search.realize import Variant
from lighten.search.study import Running, Spec
from lighten.search.workers import RETRIES, WorkerLost, Workers
from lighten.task import Task, evaluate
from tests.search.shuffled import Shuffled
from tests.tiny import tiny_task

TASK = tiny_task()
BASELINE = evaluate(TASK.model, TASK.selection, TASK.metric, 100)
LIMITS = {"channels": 5, "zeros": 9, "both": 11}


def made_up(task: Task, baseline: Scores, variant: Variant, *about: object, folder: Path, tell: object) -> None:
    """A job in place of a training: a family holds up to its limit, one step further if trained long."""
    family, step, epochs = variant.name.split()
    drop = 0.0 if int(step) <= LIMITS[family] + (int(epochs) > 5) else 0.1
    assert baseline.values is not None
    scores = replace(baseline, values=baseline.values - drop)
    made = []
    for i, trial in enumerate(variant.trials()):
        path = folder.parent.parent / "made" / variant.name / str(i)
        path.mkdir(parents=True, exist_ok=True)
        (path / "weights").write_text("some")
        made.append(compared(replace(trial, path=path, plan=Plan(), size_bytes=4), scores, baseline))
    store(made, folder)


def shuffled(n: int, seed: int, make: Callable[..., Any] = made_up) -> Shuffled:
    return Shuffled(TASK, n, seed, make)


def passed(found: list[Any]) -> bool:
    return any(c.drop is not None and c.drop.value <= 0.01 for c in found)


def bound(family: str, epochs: int = 5, start: int = 3) -> Course[tuple[str, int]]:
    """As adapt's, without a network."""
    outcomes: dict[int, bool] = {}
    while (step := next_step(outcomes, start)) is not None:
        variant = Variant(name=f"{family} {step} {epochs}", schemes=(None, "w8"))
        outcomes[step] = yield Wanted(Spec(family, step, epochs), variant, passed)
    return family, max((step for step, good in outcomes.items() if good), default=0)


class Memory:
    """A study that keeps its trials in folder and what it knows of them in memory: Optuna's takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished_in: dict[Spec, Path] = {}

    def finished(self, spec: Spec, metric: Metric, baseline: Scores) -> list[Candidate] | None:
        return stored(self.finished_in[spec], metric, baseline) if spec in self.finished_in else None

    def is_running(self, spec: Spec) -> bool:
        return False

    def checkpoints(self, spec: Spec) -> Path:
        return self.folder / "checkpoints"

    @contextlib.contextmanager
    def trial(self, spec: Spec) -> Iterator[Running]:
        running = Running(self.folder / "trials" / str(spec))
        yield running
        if running.values is not None:
            self.finished_in[spec] = running.folder

    @property
    def n_finished(self) -> int:
        return len(self.finished_in)


def driver(folder: Path, workers: Workers, told: list[Progress] | None = None, **settings: Any) -> Driver:
    study: Any = settings.pop("study", None) or Memory(folder)
    return Driver(
        task=TASK,
        budget=Budget(max_drop=0.01),
        config=SearchConfig(**settings),
        study=study,
        baseline=BASELINE,
        cost=1.0,
        workers=workers,
        tell=(told if told is not None else []).append,
    )


def searched(driven: Driver) -> tuple[list[tuple[str, int]], list[str]]:
    """Bounds, first of two families, then of both, then with more epochs; and the names of the candidates."""
    bounds: list[tuple[str, int]] = []
    with driven.searching():
        for families, epochs in ((["channels", "zeros"], 5), (["both"], 5), (["channels", "zeros", "both"], 15)):
            bounds += driven.follow([partial(bound, family, epochs) for family in families])
    assert not driven._at_work
    return bounds, [c.name for c in driven.candidates]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, int]], list[str]]:
    one = shuffled(1, 0)
    found = searched(driver(tmp_path_factory.mktemp("one"), one, max_trials=99))
    assert one.most == 1
    assert one.begun == [name.removesuffix(", float") for name in found[1] if name.endswith("float")]
    return found


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), n=st.integers(2, 7))
def test_what_is_found_does_not_depend_on_how_many_make_it(
    alone: tuple[list[tuple[str, int]], list[str]], seed: int, n: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    several = shuffled(n, seed)
    assert searched(driver(tmp_path_factory.mktemp("several"), several, max_trials=99)) == alone
    assert several.most == n
    assert max(Counter(several.begun).values()) == 1


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 12))
def test_a_limit_of_trials_counts_those_that_one_worker_would_make(
    alone: tuple[list[tuple[str, int]], list[str]], seed: int, most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    driven = driver(tmp_path_factory.mktemp("few"), shuffled(4, seed), max_trials=most)
    assert searched(driven)[1] == alone[1][: 2 * most]
    assert driven.stopped == f"stopped after {most} trials"
    assert driven.study.n_finished <= most + 4


def test_idle_workers_begin_with_other_courses_then_guess(tmp_path: Path) -> None:
    """The order in which six workers begin before anything is known; steps by next_step(…, start=3)."""
    workers = shuffled(6, 0)
    driven = driver(tmp_path, workers, max_trials=99)
    likely = driven._likely([partial(bound, "channels"), partial(bound, "zeros")])
    names = [wanted.variant.name for wanted, _ in likely][:6]
    assert names == ["channels 3 5", "zeros 3 5", "channels 5 5", "channels 1 5", "zeros 5 5", "zeros 1 5"]


def test_what_a_wrong_guess_began_is_cancelled(tmp_path: Path) -> None:
    class FirstFirst(Shuffled):
        def wait(self, futures: Collection[Future[Any]], limit_s: float) -> None:
            super().wait([next(iter(futures))], limit_s)

    workers = FirstFirst(TASK, 3, 0, made_up)
    with (driven := driver(tmp_path, workers, max_trials=99)).searching():
        assert list(driven.follow([partial(bound, "channels")])) == [("channels", 5)]
    # 3 passed, so 1 was begun in vain; of what 5 and 7 lead to one half is in vain as well.
    assert "channels 1 5" in workers.begun
    assert workers.cancelled >= 2
    assert driven.study.n_finished == len(driven.candidates) / 2


def losing(times: dict[str, int]) -> Callable[..., None]:
    """A job that loses its worker so many times, by the name of its variant."""

    def make(task: Task, baseline: Scores, variant: Variant, *about: object, folder: Path, tell: object) -> None:
        if times.get(variant.name, 0) > 0:
            times[variant.name] -= 1
            raise WorkerLost("machine 7 was switched off")
        made_up(task, baseline, variant, *about, folder=folder, tell=tell)

    return make


def test_a_lost_worker_costs_its_trial_only_and_it_is_tried_again(
    alone: tuple[list[tuple[str, int]], list[str]], tmp_path: Path
) -> None:
    workers = shuffled(3, 1, losing({"channels 3 5": 1, "zeros 7 5": RETRIES}))
    driven = driver(tmp_path, workers, max_trials=99)
    assert searched(driven) == alone
    lost = [(entry["at"], entry["times"], entry["retried"]) for entry in driven.workers.lost]
    assert sorted(lost) == [("channels 3 5", 1, True), ("zeros 7 5", 1, True), ("zeros 7 5", 2, True)]
    assert {entry["why"] for entry in driven.workers.lost} == {"machine 7 was switched off"}


def test_a_trial_that_keeps_losing_workers_is_given_up_by_name_and_tried_again_when_resumed(tmp_path: Path) -> None:
    driven = driver(tmp_path, shuffled(2, 1, losing({"channels 3 5": 99})), max_trials=99)
    searched(driven)
    failed = [c for c in driven.candidates if c.note]
    assert [c.name for c in failed] == ["channels 3 5, float", "channels 3 5, w8"]
    assert failed[0].note == f"lost {RETRIES + 1} workers, the last one so: machine 7 was switched off"
    assert [entry["retried"] for entry in driven.workers.lost] == [True] * RETRIES + [False]
    again = driver(tmp_path, shuffled(2, 1), max_trials=99, study=driven.study)
    assert searched(again)[0][0] == ("channels", LIMITS["channels"])


def test_an_error_ends_the_search_only_where_one_worker_would_meet_it(
    tmp_path: Path,
) -> None:
    def make(task: Task, baseline: Scores, variant: Variant, *about: object, folder: Path, tell: object) -> None:
        if variant.name in ("channels 1 5", "both 3 5"):
            raise RuntimeError(f"a bug at {variant.name}")
        made_up(task, baseline, variant, *about, folder=folder, tell=tell)

    with pytest.raises(RuntimeError, match="a bug at both 3 5"):
        searched(driver(tmp_path, shuffled(6, 0, make), max_trials=99))


@pytest.mark.parametrize("how", ["limit", "ctrl-c"])
def test_stopped_it_keeps_what_is_finished_and_cancels_the_rest(how: str, tmp_path: Path) -> None:
    class Interrupted(Shuffled):
        left = 3

        def wait(self, futures: Collection[Future[Any]], limit_s: float) -> None:
            if self.left == 0:
                if how == "ctrl-c":
                    raise KeyboardInterrupt
                driven.deadline = time.monotonic() - 1
                return
            self.left -= 1
            # the course that comes later is ahead: all of it counts when the time is up
            names = {future: driven_name(future) for future in futures}
            last = [future for future, name in names.items() if name.startswith("zeros")] or list(futures)
            super().wait(last, limit_s)

    def driven_name(future: Future[Any]) -> str:
        return next(x.wanted.variant.name for x in driven._at_work.values() if x.future is future)

    workers = Interrupted(TASK, 4, 0, made_up)
    driven = driver(tmp_path, workers, max_trials=99, time_limit_s=5)
    _, names = searched(driven)
    assert driven.stopped == {"limit": "stopped after 5 s", "ctrl-c": "stopped by hand"}[how]
    assert len(names) == 2 * driven.study.n_finished == 6
    assert any(name.startswith("zeros") for name in names)
    assert workers.cancelled
    assert not workers.waiting


def test_progress_says_how_many_run(tmp_path: Path) -> None:
    told: list[Progress] = []
    searched(driver(tmp_path, shuffled(2, 0), told, max_trials=99))
    assert told[0].doing.startswith("2 of 2 workers at trials: channels 3 5; zeros 3 5")
    assert "within the budget so far" in told[-1].doing
    assert all(0 <= progress.done <= progress.total for progress in told)
