"""Which trials there are, on families whose outcome is known; nothing is built."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import ConfigError
from lighten.metric import Scores
from lighten.plan import Plan
from lighten.search import adapt, driver
from lighten.search.adapt import MOST_STEPS, Search, next_step
from lighten.search.allocate import Term
from lighten.search.candidate import Candidate, compared
from lighten.search.choose import Budget
from lighten.search.config import SearchConfig
from lighten.search.driver import Driver, Progress
from lighten.search.realize import Variant
from lighten.search.space import Network, look_at
from lighten.search.study import Study
from lighten.search.workers import Workers
from lighten.task import evaluate
from tests.search.shuffled import Shuffled
from tests.tiny import tiny_task

Drop = Callable[[Variant], tuple[float, float]]
Tell = Callable[[float, str], None]


def searched(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    drop_of: Drop,
    config: SearchConfig,
    *,
    resume: bool = False,
    deadline: float = math.inf,
    workers: Workers | None = None,
) -> tuple[Driver, list[str]]:
    """A search in which each variant has the drop that drop_of says, with its margin, and what was realized."""
    made: list[str] = []

    def realized(
        task: object, baseline: Scores, variant: Variant, config: object, folder: Path, tell: Tell, checkpoints: Path
    ) -> list[Candidate]:
        tell(0.5, variant.name)
        made.append(f"{variant.name}, {variant.epochs} epochs")
        drop, margin = drop_of(variant)
        assert baseline.values is not None
        noise = torch.linspace(-1, 1, baseline.n, dtype=torch.float64) * margin * 12  # margin = 1.96 σ / √n, n = 200
        scores = replace(baseline, values=baseline.values - drop + noise)
        found = []
        for i, trial in enumerate(variant.trials()):
            path = folder / str(i)
            path.mkdir(parents=True)
            (path / "weights").write_text("some")
            found.append(compared(replace(trial, path=path, plan=Plan(), size_bytes=4), scores, baseline))
        return found

    monkeypatch.setattr(driver, "realize", realized)
    task, seen = tiny_task(), list[Progress]()
    baseline = evaluate(task.model, task.selection, task.metric, 100)
    driven = Driver(
        task=task,
        budget=Budget(max_drop=0.01, minimize="size"),
        config=config,
        study=Study(tmp_path / "work", {"task": "tiny"}, resume=resume),
        baseline=baseline,
        cost=1000.0,
        workers=workers or Workers(task),
        tell=seen.append,
        deadline=deadline,
    )
    search = Search(driver=driven, whole={"onnxruntime": 1000.0, "native": 1100.0})
    with driven.searching():
        if config.is_listed:
            search.listed()
        else:
            search.adaptive(look_at(Workers(task), config, lambda share, doing: None))
    assert all(0 <= progress.done <= progress.total for progress in seen)
    return driven, made


def listed(ratios: tuple[float, ...], sparsities: tuple[float, ...] = ()) -> SearchConfig:
    return SearchConfig(ratios=ratios, sparsities=sparsities)


def sure(drop: float) -> tuple[float, float]:
    return drop, 0.001


def test_the_float_original_is_not_a_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search, _ = searched(monkeypatch, tmp_path, lambda v: sure(0.0), listed((0.0, 0.25, 0.5)))
    names = [c.name for c in search.candidates]
    assert names == [
        "100 % of channels, w8a8", "75 % of channels, float", "75 % of channels, w8a8", "50 % of channels, float",
        "50 % of channels, w8a8"]  # fmt: skip
    assert not any(c.note for c in search.candidates)


def test_larger_ratios_are_not_tried_once_one_is_hopeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search, made = searched(
        monkeypatch, tmp_path, lambda v: sure(0.05 if v.ratio or v.sparsity == 0.8 else 0.0),
        listed((0.0, 0.25, 0.5), (0.5, 0.8, 0.9)),
    )  # fmt: skip
    assert len(made) == 4
    notes = [c.note for c in search.candidates]
    assert [bool(note) for note in notes] == [False] * 3 + [True] * 2 + [False] * 2 + [True]
    assert notes[3].startswith("not tried: 75 % of channels, w8a8 already drops too much")


def test_a_drop_that_may_be_noise_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search, _ = searched(monkeypatch, tmp_path, lambda v: (0.05, 0.045), listed((0.0, 0.25, 0.5)))
    assert not any(c.note for c in search.candidates)


def test_zeros_are_not_tried_where_the_engine_cannot_run_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Search.listed

    def without_native(self: Search) -> None:
        self.whole = {"onnxruntime": 1000.0}
        original(self)

    monkeypatch.setattr(Search, "listed", without_native)
    search, made = searched(monkeypatch, tmp_path, lambda v: sure(0.0), listed((), (0.8, 0.9)))
    assert made == []
    assert all("native engine does not run" in c.note for c in search.candidates)


@given(limit=st.integers(0, MOST_STEPS), start=st.integers(1, MOST_STEPS), least=st.integers(0, MOST_STEPS))
def test_bisection_ends_at_the_last_good_step(limit: int, start: int, least: int) -> None:
    outcomes: dict[int, bool] = {}
    while (step := next_step(outcomes, start, least)) is not None:
        assert least < step <= MOST_STEPS
        assert step not in outcomes
        outcomes[step] = step <= limit
    assert max([s for s, good in outcomes.items() if good], default=least) == max(least, limit)
    assert len(outcomes) <= 9


def test_the_adaptive_search_finds_each_familys_bound_then_trains_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def drop(variant: Variant) -> tuple[float, float]:
        allowed = 0.4 if variant.channels else 0.2
        harm = sum(variant.channels.values()) / 2 * 0.4 / allowed + sum(variant.zeros.values()) / 3
        return sure(0.02 * harm / (2 if variant.epochs > 20 else 1))

    search, made = searched(monkeypatch, tmp_path, drop, SearchConfig(round_to=4))
    families = [name.split(":")[0] for name in made]
    assert families[0] == "all channels, 0 epochs"
    assert [f for f in dict.fromkeys(families) if "all" not in f] == ["channels", "zeros", "channels and zeros"]
    long = [i for i, name in enumerate(made) if "epochs, " in name]
    assert long
    assert min(long) > max(i for i, name in enumerate(made) if "epochs, " not in name)
    assert search.n_asked == len(made) == search.study.n_finished


def test_where_nothing_drops_a_family_goes_on_to_the_least_it_can_cost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Variant] = []

    def drop(variant: Variant) -> tuple[float, float]:
        seen.append(variant)
        return sure(0.0)

    config = SearchConfig(round_to=4)
    searched(monkeypatch, tmp_path, drop, config)
    zeros = [variant.zeros for variant in seen if variant.zeros and not variant.channels]
    least = dict.fromkeys(zeros[-1], config.zero_shares[-1])
    # Its bytes are no step's: the step below them is taken to end there.
    assert least in zeros
    assert len({tuple(sorted(shares.items())) for shares in zeros}) > 2


def test_what_no_short_training_can_do_is_trained_long_from_where_its_parts_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def drop(variant: Variant) -> tuple[float, float]:
        if variant.name.startswith("channels and zeros"):
            return sure(0.0 if variant.epochs > 20 else 0.02)
        return sure(0.02 if variant.channels or variant.epochs > 20 else 0.006 * sum(variant.zeros.values()))

    _, made = searched(monkeypatch, tmp_path, drop, SearchConfig(round_to=4))
    of_both = [name.split(", ") for name in made if name.startswith("channels and zeros")]
    assert [epochs for *_, epochs in of_both] == ["20 epochs", "80 epochs", "80 epochs", "80 epochs"]
    assert of_both[0][0] == of_both[1][0]  # the step that the short one could not do


@pytest.mark.parametrize("seed", range(3))
def test_four_workers_find_what_one_does(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def drop(variant: Variant) -> tuple[float, float]:
        harm = sum(variant.channels.values()) / 2 + sum(variant.zeros.values()) / 3
        return sure(0.02 * harm / (2 if variant.epochs > 20 else 1))

    config = SearchConfig(round_to=4)
    one, in_turn = searched(monkeypatch, tmp_path / "one", drop, config)
    four, made = searched(monkeypatch, tmp_path / "four", drop, config, workers=Shuffled(tiny_task(), 4, seed))
    assert [c.name for c in four.candidates] == [c.name for c in one.candidates]
    assert [c.drop for c in four.candidates] == [c.drop for c in one.candidates]
    assert set(in_turn) <= set(made)
    assert four.n_asked == one.n_asked == len(in_turn) == one.study.n_finished


def test_a_resumed_search_does_no_trial_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = SearchConfig(round_to=4, max_trials=2)
    first, made = searched(monkeypatch, tmp_path, lambda v: sure(0.0), few)
    assert len(made) == 2
    assert first.stopped == "stopped after 2 trials"
    second, more = searched(
        monkeypatch, tmp_path, lambda v: sure(0.0), SearchConfig(round_to=4, max_trials=4), resume=True
    )
    assert len(more) == 2
    assert [c.name for c in second.candidates[: len(first.candidates)]] == [c.name for c in first.candidates]


@pytest.mark.parametrize("factor", [0.5, 20.0])
def test_tables_that_are_timed_anew_change_nothing_of_a_search(
    factor: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither points nor where there are none: with 20 times the cost most are out of reach, with half none is."""

    def drop(variant: Variant) -> tuple[float, float]:
        return sure(0.004 * (sum(variant.channels.values()) + sum(variant.zeros.values())))

    config = SearchConfig(round_to=4)
    first, made = searched(monkeypatch, tmp_path, drop, config)
    weigh = adapt.weight_terms

    def anew(network: Network, family: str, whole: float) -> list[Term]:
        return [Term(term.choices, term.cost * factor) for term in weigh(network, family, whole)]

    monkeypatch.setattr(adapt, "weight_terms", anew)
    again, more = searched(monkeypatch, tmp_path, drop, config, resume=True)
    assert len(made) > 4
    assert more == []
    assert [c.name for c in again.candidates] == [c.name for c in first.candidates]


@pytest.mark.parametrize("shares", [(1.0,), (-0.1,), (0.5, 0.25), (0.5, 0.5)])
def test_shares_ascend_in_their_range(shares: tuple[float, ...]) -> None:
    for name in ("ratios", "sparsities", "channel_shares", "zero_shares"):
        with pytest.raises(ConfigError, match="must be ascending numbers"):
            SearchConfig(**{name: shares})  # type: ignore[arg-type]


def test_something_has_to_be_tried() -> None:
    with pytest.raises(ConfigError, match="nothing to try"):
        SearchConfig(ratios=(), sparsities=())
    with pytest.raises(ConfigError, match="must begin with 0"):
        SearchConfig(zero_shares=(0.5,))


def test_when_the_time_is_up_no_trial_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search, made = searched(
        monkeypatch, tmp_path, lambda v: sure(0.0), SearchConfig(time_limit_s=5), deadline=time.monotonic() - 1
    )
    assert made == []
    assert search.candidates == []
    assert search.stopped == "stopped after 5 s"


def test_the_trial_of_another_process_is_waited_for_and_run_ahead_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first trial is another's for a while; this process begins with the one that will be wanted then."""
    waits: list[float] = []
    config = SearchConfig(ratios=(0.25, 0.5), schemes=(None,))
    monkeypatch.setattr(driver.time, "sleep", waits.append)
    busy = [True] * 4
    monkeypatch.setattr(Study, "is_running", lambda self, spec: spec.step == 0 and bool(busy) and busy.pop())
    search, made = searched(monkeypatch, tmp_path, lambda v: sure(0.0), config)
    assert waits == [driver.WAIT_S] * 3
    assert [name[:4] for name in made] == ["50 %", "75 %"]
    assert [c.name[:4] for c in search.candidates] == ["75 %", "50 %"]
