import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lighten.errors import TaskError
from lighten.metric import ACCURACY, Interval, Metric, Scores, paired_drop, score

MSE = Metric("squared error", lambda outputs, targets: (outputs - targets) ** 2, higher_is_better=False)
SHARE_RIGHT = Metric("share right", lambda outputs, targets: (outputs.argmax(-1) == targets).float().mean())
LARGEST_ERROR = Metric(
    "largest error", lambda outputs, targets: (outputs - targets).abs().max(), higher_is_better=False
)


def binary(values: list[int]) -> Scores:
    return Scores(ACCURACY, len(values), torch.tensor(values, dtype=torch.float64))


def real(values: list[float], metric: Metric = MSE) -> Scores:
    return Scores(metric, len(values), torch.tensor(values, dtype=torch.float64))


def test_accuracy_by_hand() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    scores = score([(outputs[:2], torch.tensor([1, 1])), (outputs[2:], torch.tensor([1]))], ACCURACY)
    assert scores.values is not None
    assert scores.values.tolist() == [1, 0, 1]
    assert scores.interval.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(right: int, n: int, low: float, high: float) -> None:
    interval = binary([1] * right + [0] * (n - right)).interval
    assert interval.value == pytest.approx(right / n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)  # the table's last digit


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60))
def test_wilson_interval_as_scipy_computes_it(values: list[int]) -> None:
    expected = stats.binomtest(sum(values), len(values)).proportion_ci(method="wilson")
    interval = binary(values).interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def agresti_min_from_a_table(before: list[int], after: list[int]) -> tuple[float, float]:
    """Half a pair added to each of the four cells, then the Wald interval of the weighted differences."""
    table = np.full((2, 2), 0.5)
    for pair in zip(before, after, strict=True):
        table[pair] += 1
    differences = np.array([[0, -1], [1, 0]])  # [before, after]; positive = worse
    mean = np.average(differences, weights=table)
    variance = np.average((differences - mean) ** 2, weights=table)
    margin = stats.norm.ppf(0.975) * math.sqrt(variance / table.sum())
    return max(-1.0, mean - margin), min(1.0, mean + margin)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_paired_drop_of_outcomes_is_agresti_min(pairs: list[tuple[int, int]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    drop = paired_drop(binary(before), binary(after))
    assert drop.value == pytest.approx((sum(before) - sum(after)) / len(pairs))
    assert (drop.low, drop.high) == pytest.approx(agresti_min_from_a_table(before, after), abs=1e-9)


def test_no_changed_outcome_is_not_certainty() -> None:
    drop = paired_drop(binary([1] * 99 + [0]), binary([1] * 99 + [0]))
    assert drop.value == 0
    assert drop.low < 0 < drop.high


def test_paired_drop_of_real_values_is_students_t() -> None:
    before, after = [1.0, 2.0, 4.0, 8.0], [1.5, 2.0, 4.5, 9.0]
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)  # an error: more is worse
    drop = paired_drop(real(before), real(after))
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.5, expected.low, expected.high))


def test_one_end_of_the_wider_level_is_the_one_sided_bound() -> None:
    before, after = [1.0, 2.0, 4.0, 8.0], [1.5, 2.0, 4.5, 9.0]
    one_sided = stats.ttest_rel(after, before, alternative="less").confidence_interval(0.95)
    assert paired_drop(real(before), real(after), level=0.9).high == pytest.approx(one_sided.high)
    outcomes = binary([1] * 9 + [0]), binary([1] * 7 + [0] * 3)
    assert paired_drop(*outcomes, level=0.9).high < paired_drop(*outcomes).high


def test_direction_of_the_metric_decides_what_is_worse() -> None:
    up = Metric("gain", MSE.function, higher_is_better=True)
    assert paired_drop(real([3.0, 4.0]), real([1.0, 2.5])).value == pytest.approx(-1.75)
    assert paired_drop(real([3.0, 4.0], up), real([1.0, 2.5], up)).value == pytest.approx(1.75)


def test_one_sample_of_a_real_metric_says_nothing() -> None:
    assert real([0.3]).interval == Interval(pytest.approx(0.3), -math.inf, math.inf)


def test_set_level_metric_is_bootstrapped() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(400, 3, generator=generator)
    targets = torch.randint(3, (400,), generator=generator)
    whole = score([(outputs[:300], targets[:300]), (outputs[300:], targets[300:])], SHARE_RIGHT)
    assert whole.values is None
    single = score([(outputs, targets)], ACCURACY).interval
    assert whole.interval.value == pytest.approx(single.value)
    # Two methods for one quantity: half a standard error of a share, 0.5 / sqrt(400) / 2, keeps them together.
    assert (whole.interval.low, whole.interval.high) == pytest.approx((single.low, single.high), abs=0.0125)
    assert whole.interval == whole.interval  # the same draws every time


def test_set_level_metric_sees_the_set_and_not_a_mean_of_batches() -> None:
    outputs, targets = torch.tensor([0.0, 1.0, 5.0]), torch.zeros(3)
    scores = score([(outputs[:2], targets[:2]), (outputs[2:], targets[2:])], LARGEST_ERROR)
    assert scores.interval.value == 5
    assert paired_drop(scores, scores).value == 0


@pytest.mark.parametrize("metric", [MSE, LARGEST_ERROR], ids=["per sample", "set"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_not_a_number_is_refused(metric: Metric, bad: float) -> None:
    with pytest.raises(TaskError, match="NaN or infinite on 2 samples"):
        score([(torch.tensor([1.0, bad]), torch.zeros(2))], metric)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(TaskError, match="evaluation set is empty"):
        score([], ACCURACY)


def test_a_shape_of_neither_kind_is_refused() -> None:
    odd = Metric("odd", lambda outputs, targets: outputs)
    with pytest.raises(TaskError, match=r"returned shape \[4, 3\] for a batch of 4"):
        score([(torch.zeros(4, 3), torch.zeros(4))], odd)


def test_a_metric_that_changes_its_kind_on_a_last_batch_of_one_is_refused() -> None:
    squeezed = Metric("squeezed", lambda outputs, targets: ((outputs - targets) ** 2).squeeze())
    batches = [(torch.zeros(4), torch.zeros(4)), (torch.zeros(1), torch.zeros(1))]
    with pytest.raises(TaskError, match="a single number for a batch of 1"):
        score(batches, squeezed)
    assert score(batches[:1], squeezed).n == 4
