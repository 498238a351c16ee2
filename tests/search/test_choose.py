import numpy as np
import pytest

from lighten.errors import ConfigError
from lighten.metric import Interval
from lighten.runtime.measure import LatencySample
from lighten.search.choose import Budget, choose, nearest, within
from lighten.search.sweep import Candidate


def candidate(name: str, ms: float, drop: float, macs: int = 100, size_bytes: int = 1000) -> Candidate:
    return Candidate(
        name=name,
        ratio=0.5,
        scheme="w8a8",
        macs=macs,
        size_bytes=size_bytes,
        drop=Interval(drop, drop, drop),
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
        ({"max_drop": 0.1, "max_latency_ms": 0.0}, "max_latency_ms=0.0 must be above 0"),
        ({"max_drop": 0.1, "max_size_bytes": -1}, "max_size_bytes=-1 must be above 0"),
    ],
)
def test_bad_budgets_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**setting)
