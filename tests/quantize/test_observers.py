import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.affine import qparams_of_range
from lighten.quantize.observers.entropy import EntropyConfig, divergence
from lighten.quantize.observers.histogram import Histogram
from lighten.quantize.observers.mean_std import MeanStdConfig
from lighten.quantize.observers.minmax import MinMaxConfig, MinMaxObserver
from lighten.quantize.observers.mse import MSEConfig, MSEObserver, squared_errors
from lighten.quantize.observers.percentile import PercentileConfig
from lighten.quantize.ops import dequantize, quantize
from lighten.registry import observer as registry

data = hnp.arrays("float32", st.integers(1, 60), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)
batches = st.lists(data, min_size=1, max_size=5)


def minmax(*seen: Tensor) -> tuple[float, float]:
    observer = MinMaxObserver(MinMaxConfig())
    for x in seen:
        observer.observe(x)
    return observer.range()


def mse(*seen: Tensor, **settings_: int) -> MSEObserver:
    observer = MSEObserver(MSEConfig(**settings_))
    for x in seen:
        observer.observe(x)
    return observer


def rms_error(x: Tensor, low: float, high: float) -> float:
    scale, zero_point = qparams_of_range(low, high)
    return float((dequantize(quantize(x, scale, zero_point), scale, zero_point) - x).double().square().mean().sqrt())


@given(seen=batches)
def test_minmax_is_the_extremes_and_zero_in_any_order(seen: list[Tensor]) -> None:
    everything = torch.cat([*seen, torch.zeros(1)])
    assert minmax(*seen) == minmax(*reversed(seen)) == (everything.min(), everything.max())


@given(seen=batches)
@example(seen=[torch.zeros(5)])
@example(seen=[torch.full((5,), 3.0)])
@example(seen=[torch.full((5,), -1e-45), torch.full((5,), 1e-45)])
@example(seen=[torch.tensor([1e-44, 1e-30]), torch.tensor([-3.4e38, 1.0])])
def test_widening_keeps_every_count(seen: list[Tensor]) -> None:
    observer = mse(*seen)
    histogram = observer.histogram
    assert histogram.counts.sum() == sum(len(x) for x in seen if x.any())
    assert histogram.low == min(0, *(float(x.min()) for x in seen))
    assert histogram.high == max(0, *(float(x.max()) for x in seen))
    low, high = observer.range()
    assert histogram.low <= low <= 0 <= high <= histogram.high


def test_widening_merges_bins_in_pairs_around_the_middle() -> None:
    histogram = Histogram(4)
    histogram.observe(torch.tensor([-1.0, -0.4, 0.4, 0.9]))
    assert histogram.counts.tolist() == [1, 1, 1, 1]
    histogram.observe(torch.tensor([-3.5, 3.5, 0.1]))
    assert histogram.limit == 4.0
    assert histogram.counts.tolist() == [1, 2, 3, 1]


@given(centres=data, low=st.floats(-100, 0), high=st.floats(0.5, 100), bits=st.integers(2, 8))
def test_squared_errors_are_those_of_a_loop_over_all_codes(centres: Tensor, low: float, high: float, bits: int) -> None:
    """The slow oracle: the distance of each value to the nearest of all values that a code can stand for."""
    step = (high - low) / (2**bits - 1)
    grid = [(round(low / step) + code) * step for code in range(2**bits)]
    want = sum(2 * min((value - x) ** 2 for value in grid) for x in centres.tolist())
    counts = torch.full((len(centres),), 2.0, dtype=torch.float64)
    as_one = [torch.tensor([limit], dtype=torch.float64) for limit in (low, high)]
    got = squared_errors(centres.double(), counts, *as_one, bits)
    torch.testing.assert_close(float(got), want, rtol=1e-9, atol=1e-9)


@given(x=data)
@settings(max_examples=200)
def test_mse_error_is_never_above_that_of_minmax(x: Tensor) -> None:
    """On the histogram's centres it is so by construction, because min-max is the first candidate.

    The distance to the nearest code changes by no more than x does, so moving each value to its centre, half a bin
    away at most, changes each of the two root mean squares by half a bin at most.
    """
    observer = mse(x)
    bin_width = 2 * observer.histogram.limit / observer.config.bins
    rounding = (
        255 * 3 * 2**-24 * (observer.histogram.high - observer.histogram.low) / 255
    )  # of float32 x / scale, as in test_affine.py
    assert rms_error(x, *observer.range()) <= rms_error(x, *minmax(x)) + bin_width + 2 * rounding


def test_mse_clips_a_lone_outlier_that_minmax_pays_for() -> None:
    x = torch.cat([torch.randn(200_000, generator=torch.Generator().manual_seed(0)), torch.tensor([12.0])])
    assert mse(x).range()[1] < 0.9 * minmax(x)[1]
    assert rms_error(x, *mse(x).range()) < 0.9 * rms_error(x, *minmax(x))


@given(seen=batches)
def test_order_and_batching_move_the_mse_error_by_two_bins_at_most(seen: list[Tensor]) -> None:
    """The first batch sets where bins begin, so centres differ; each of them is within half of the wider bin."""
    x = torch.cat(seen)
    observers = [mse(*seen), mse(*reversed(seen)), mse(x)]
    errors = [rms_error(x, *observer.range()) for observer in observers]
    bin_width = max(2 * observer.histogram.limit / observer.config.bins for observer in observers)
    rounding = 3 * 2**-24 * (observers[0].histogram.high - observers[0].histogram.low)
    # Half a bin from data to centres and back, for the best range of each of the two histograms.
    assert max(errors) - min(errors) <= 2 * bin_width + 2 * rounding


def range_of(name: str, *seen: Tensor, **setting: float) -> tuple[float, float]:
    entry = registry[name]
    observer = entry.function(entry.config(**setting))
    for x in seen:
        observer.observe(x)
    return observer.range()


def test_percentile_leaves_the_same_number_out_at_either_end() -> None:
    """Of -100..900, 2 % are 20 values, 10 at either end; bins are 1800 / 4096 wide and hold at most one value."""
    x = torch.arange(-100.0, 900.0)
    low, high = range_of("percentile", x, percentile=98)
    assert low == pytest.approx(-90, abs=1800 / 4096)
    assert high == pytest.approx(889, abs=1800 / 4096)
    assert range_of("percentile", x, percentile=100) == (-100.0, 899.0)


def test_mean_std_by_hand_and_in_any_batches() -> None:
    x = torch.tensor([-1.0, 1.0, 3.0, 5.0])  # mean 2, deviation sqrt(5)
    assert range_of("mean-std", x, k=1) == pytest.approx((min(0.0, 2 - 5**0.5), 2 + 5**0.5))
    assert range_of("mean-std", x[:1], x[1:], k=1) == pytest.approx(range_of("mean-std", x, k=1))
    assert range_of("mean-std", x) == (-1.0, 5.0)  # never beyond what was seen


def test_mean_std_keeps_a_small_deviation_beside_a_large_mean() -> None:
    x = torch.tensor([1e6, 1e6 + 1, 1e6 - 1])
    assert range_of("mean-std", x, x, k=1)[1] == pytest.approx(1e6 + (2 / 3) ** 0.5, abs=1e-3)


def test_divergence_by_hand() -> None:
    """Eight bins, four levels; the value beyond the range is added to the last bin, which then holds 1/2, not 1/4."""
    centres = torch.arange(8.0, dtype=torch.float64)
    counts = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
    # Four values on four levels: the codes tell all.
    assert divergence(centres, counts, 0, 3, 2) == pytest.approx(0)
    # Clipped to 0..2 in steps of 2/3: levels 0, 2 (1 / (2/3) = 1.5, to even) and 3; P = (1, 1, 2) / 4, Q = 1/3 each.
    want = 2 * 0.25 * torch.tensor(0.75).log() + 0.5 * torch.tensor(1.5).log()
    assert divergence(centres, counts, 0, 2, 2) == pytest.approx(float(want))


@pytest.mark.parametrize("name", ["entropy", "percentile", "mean-std"])
def test_outliers_are_clipped(name: str) -> None:
    x = torch.cat([torch.randn(200_000, generator=torch.Generator().manual_seed(0)), torch.tensor([12.0])])
    assert 2 < range_of(name, x)[1] < 0.9 * 12


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *(("mse", "bits", 4), ("mse", "bins", 8), ("mse", "candidates", 1)),
        *(("entropy", "bits", 4), ("entropy", "bins", 512), ("entropy", "candidates", 1)),
        *(("percentile", "percentile", 90.0), ("percentile", "bins", 8), ("mean-std", "k", 1.0)),
    ],
)
def test_every_setting_is_heeded(name: str, setting: str, value: float) -> None:
    x = torch.cat([torch.randn(50_000, generator=torch.Generator().manual_seed(0)), torch.tensor([8.0])])
    assert range_of(name, x) != range_of(name, x, **{setting: value})


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        (MSEConfig, {"bins": 6}, "bins=6 is not a positive multiple of 4"),
        (MSEConfig, {"bins": 0}, "bins=0"),
        (MSEConfig, {"bits": 9}, r"bits=9 is outside 2..8"),
        (MSEConfig, {"candidates": 0}, "candidates=0 is below 1"),
        (EntropyConfig, {"bins": 2}, "bins=2"),
        (EntropyConfig, {"bits": 1}, "bits=1"),
        (EntropyConfig, {"candidates": 0}, "candidates=0"),
        (PercentileConfig, {"percentile": 50.0}, "percentile=50.0 is outside 50..100"),
        (PercentileConfig, {"bins": 2}, "bins=2"),
        (MeanStdConfig, {"k": 0.0}, "k=0.0 is not above 0"),
    ],
)
def test_bad_settings_are_refused(config: type, setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**setting)
