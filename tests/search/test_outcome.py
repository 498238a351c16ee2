import pytest

from lighten.metric import Interval
from lighten.runtime.measure import Ratio
from lighten.search.choose import Budget
from lighten.search.outcome import verdict
from tests.search.test_choose import candidate


@pytest.mark.parametrize(
    ("ratio", "n_bytes", "said"),
    [
        (
            Ratio(4.149, 4.0, 4.3),
            100,
            "new: 4.1× faster and 10.0× smaller, accuracy drop 0.0010 on holdout data, within",
        ),
        (Ratio(1.02, 0.9, 1.1), 1000, "new: no faster for certain and of unchanged size, "),
        (Ratio(0.8, 0.7, 0.9), 1250, "new: 1.25× slower and 1.25× larger, "),
    ],
)
def test_a_verdict_rounds_as_the_report_does(ratio: Ratio, n_bytes: int, said: str) -> None:
    original, new = candidate("old", 2.0, 0.0), candidate("new", 1.0, 0.001, size_bytes=n_bytes)
    budget, drop = Budget(max_drop=0.01), Interval(0.001, 0.0, 0.002)
    assert said in verdict(budget, original, new, admissible=True, accepted=True, drop=drop, ratio=ratio)
