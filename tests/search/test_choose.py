import numpy as np
import pytest
import torch

from lighten.errors import ConfigError
from lighten.metric import ACCURACY, Interval, Scores
from lighten.runtime.measure import LatencySample
from lighten.search.candidate import Candidate
from lighten.search.choose import Budget, choose, judgeable, nearest, within


def candidate(
    name: str, ms: float, drop: float, macs: int = 100, size_bytes: int = 1000, bound: float | None = None, n: int = 100
) -> Candidate:
    return Candidate(
        name=name,
        ratio=0.5,
        scheme="w8a8",
        macs=macs,
        size_bytes=size_bytes,
        drop=Interval(drop, drop, drop),
        drop_bound=drop if bound is None else bound,
        scores=Scores(ACCURACY, n, torch.zeros(n)),
        latency=LatencySample(blocks_ms=((np.array([ms]),),)),
    )


FAST = candidate("fast", 1.0, 0.02)
SOUND = candidate("sound", 2.0, 0.01)
SMALL = candidate("small", 2.1, 0.005, macs=50)
FAILED = Candidate(name="failed", ratio=0.5, scheme=None, note="it broke")


def test_the_fastest_within_the_drop_wins() -> None:
    assert choose([FAST, SOUND, FAILED], Budget(max_drop=0.01), 10.0) is SOUND
    assert choose([FAST, SOUND, FAILED], Budget(max_drop=0.02), 10.0) is FAST


def test_of_those_that_timing_cannot_rank_the_most_compressed_wins() -> None:
    assert choose([SOUND, SMALL], Budget(max_drop=0.01), 10.0) is SMALL
    assert choose([SMALL, SOUND], Budget(max_drop=0.01), 10.0) is SMALL


def test_what_is_not_better_than_the_original_is_not_chosen() -> None:
    assert choose([SOUND], Budget(max_drop=0.01), 2.0) is None
    assert nearest([SOUND], Budget(max_drop=0.0), 2.0) is None


def test_limits_on_time_and_size_are_heeded() -> None:
    assert not within(SOUND, Budget(max_drop=0.01, max_latency_ms=1.9))
    assert not within(SOUND, Budget(max_drop=0.01, max_size_bytes=999))
    assert within(SOUND, Budget(max_drop=0.01, max_size_bytes=1000, max_latency_ms=2.0))
    assert not within(FAILED, Budget(max_drop=1.0))


def test_the_end_of_the_interval_has_to_be_within_the_drop() -> None:
    lucky = candidate("lucky", 1.0, 0.008, bound=0.012)
    budget = Budget(max_drop=0.01)
    assert choose([lucky, SOUND], budget, 10.0) is SOUND
    assert choose([lucky, SOUND], Budget(max_drop=0.01, accept="point"), 10.0) is lucky
    assert judgeable([lucky, SOUND], budget) == (budget, "")


def test_too_few_samples_are_judged_by_the_estimate_and_it_is_said() -> None:
    # Known to 0.02 with 100 samples: to half of 0.01 with (0.02 / 0.005)² = 16 times as many.
    few = [candidate("a", 1.0, 0.0, bound=0.02), candidate("b", 1.0, 0.0, bound=0.03)]
    budget, why = judgeable(few, Budget(max_drop=0.01))
    assert budget == Budget(max_drop=0.01, accept="point")
    assert why.startswith("100 selection samples are too few to tell a drop of 0.01 for certain (about 1,600 would do)")
    assert "no number" in judgeable(few, Budget(max_drop=0.0))[1]
    assert judgeable(few, Budget(max_drop=0.04)) == (Budget(max_drop=0.04), "")
    assert judgeable([FAILED], Budget(max_drop=0.01))[1] == ""


def test_minimize_size_ranks_by_bytes() -> None:
    slim = candidate("slim", 9.0, 0.0, size_bytes=100)
    assert choose([SOUND, slim], Budget(max_drop=0.01, minimize="size"), 5000.0) is slim


def test_the_nearest_misses_the_budget_by_least() -> None:
    assert nearest([FAST, SOUND, FAILED], Budget(max_drop=0.0), 10.0) is SOUND
    assert nearest([FAST, SOUND], Budget(max_drop=0.02, max_latency_ms=1.5), 10.0) is FAST


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_drop": -0.1}, "max_drop=-0.1 must be 0 or more"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
        ({"max_drop": 0.1, "minimize": "cost"}, "minimize='cost' is unknown"),
        ({"max_drop": 0.1, "accept": "hope"}, "accept='hope' is unknown"),
        ({"max_drop": 0.1, "max_latency_ms": 0.0}, "max_latency_ms=0.0 must be above 0"),
        ({"max_drop": 0.1, "max_size_bytes": -1}, "max_size_bytes=-1 must be above 0"),
    ],
)
def test_bad_budgets_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**setting)
