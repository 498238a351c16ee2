"""The text's pruning formula: as printed, its sample's fault, and the fast way against the plain double sum."""

import math
import resource
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune import prune
from lighten.prune.importance import density
from lighten.prune.importance.density import LineDensity, coverage, line_removal_order, removal_order
from lighten.prune.importance.kernel import KernelConfig
from lighten.prune.importance.kernel import kernel as kernel_of_filters
from lighten.prune.masks import masks
from lighten.prune.methods.kernel import KernelWeightsConfig, kernel
from lighten.prune.methods.layer_data import LayerData


def plain(x: list[float], kept: list[bool]) -> list[float]:
    """The formula, letter by letter."""
    result = []
    for x_i in x:
        above = sum(math.exp(-((x_i - x_j) ** 2)) for x_j, keep in zip(x, kept, strict=True) if keep)
        result.append(above / sum(math.exp(-((x_i - x_k) ** 2)) for x_k in x))
    return result


def layer(weight: Tensor) -> LayerData:
    return LayerData(weight=weight, output_scale=torch.ones(len(weight)))


numbers = st.lists(st.floats(-3, 3), min_size=1, max_size=12)


@given(x=numbers, data=st.data())
def test_coverage_is_the_printed_formula(x: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x)))
    found = coverage(torch.tensor(x, dtype=torch.float64)[:, None], torch.tensor(kept), 1.0)
    torch.testing.assert_close(found.tolist(), plain(x, kept), rtol=1e-9, atol=1e-12)


def as_printed(weight: Tensor, ratio: float) -> Tensor:
    """The text's sample in today's terms: it splits, zeroes one part, and returns the sum of both."""
    gone = torch.zeros(weight.numel(), dtype=torch.bool)
    gone[weight.flatten().abs().argsort()[: round(ratio * weight.numel())]] = True
    kept = weight.flatten().masked_fill(gone, 0)
    pruned = weight.flatten().masked_fill(~gone, 0)
    return (kept + pruned).view(weight.shape)


def test_the_printed_sample_prunes_nothing_and_this_one_does() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_printed(weight, 0.5), weight)
    linear = torch.nn.Linear(12, 8)
    linear.weight.data.copy_(weight)
    pruned = prune(linear, 0.5, granularity="element", importance="kernel", example_inputs=(torch.ones(1, 12),))
    assert (pruned.get_parameter("weight") == 0).sum() == 48
    kept = masks(pruned)["weight"]
    assert torch.equal(pruned.get_parameter("weight")[kept], weight[kept])


@pytest.mark.parametrize("bandwidth", [0.02, 0.3, 2.0])
def test_the_fast_sums_are_within_their_bound(bandwidth: float) -> None:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(3000, generator=make, dtype=torch.float64)
    x[:3] = torch.tensor([40.0, -25.0, 40.0])
    weights = torch.rand(3000, generator=make) > 0.3
    fast = LineDensity(x, bandwidth)
    assert not fast.exact
    exact = (-((x[:, None] - x) / bandwidth).square()).exp() @ weights.double()
    assert (fast.sums(weights) - exact).abs().max() <= weights.sum() / (2 * density.PER_BANDWIDTH**2)


def test_small_inputs_are_exact() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(500, generator=torch.Generator().manual_seed(1))
    exact = (-((x[:, None] - x) / 0.3).square()).exp() @ weights.double()
    torch.testing.assert_close(LineDensity(x, 0.3).sums(weights), exact, rtol=1e-12, atol=0)


def slow_order(x: list[float], bandwidth: float, rounds: int) -> list[int]:
    """line_removal_order with loops."""
    kept, order = set(range(len(x))), []
    for turn in range(rounds):
        n_gone = len(order)
        around = {}
        for i in kept:
            around[i] = sum(math.exp(-(((x[i] - x[j]) / bandwidth) ** 2)) for j in kept if j != i)
            around[i] += n_gone * math.exp(-((x[i] / bandwidth) ** 2))
        goes = sorted(kept, key=lambda i: (-around[i], i))[: len(x) * (turn + 1) // rounds - n_gone]
        kept -= set(goes)
        order += goes
    return order


@pytest.mark.parametrize("rounds", [1, 3, 20])
def test_the_order_is_that_of_slow_loops(rounds: int) -> None:
    x = torch.randn(20, generator=torch.Generator().manual_seed(rounds), dtype=torch.float64)
    assert line_removal_order(x, 0.7, rounds).tolist() == slow_order(x.tolist(), 0.7, rounds)


def test_points_go_one_by_one_as_on_a_line() -> None:
    x = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order, uncovered = removal_order(x[:, None], 0.7)
    assert order.tolist() == slow_order(x.tolist(), 0.7, 20)
    kept = torch.ones(20, dtype=torch.bool)
    for gone, share in zip(order.tolist(), uncovered.tolist(), strict=True):
        kept[gone] = False
        assert share == pytest.approx(1 - float(coverage(x[:, None], kept, 0.7)[gone]))


def test_with_everything_else_kept_the_first_to_go_has_the_highest_coverage() -> None:
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = []
    for i in range(30):
        kept = torch.ones(30, dtype=torch.bool)
        kept[i] = False
        shares.append(float(coverage(x[:, None], kept, 1.0)[i]))
    assert line_removal_order(x, 1.0, 1).tolist() == sorted(range(30), key=lambda i: -shares[i])


def test_of_two_equal_filters_one_goes_and_the_other_stays() -> None:
    make = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 20, generator=make)
    rows[4] = rows[1] + 1e-3
    scores = kernel_of_filters(rows, KernelConfig())
    first = int(scores.argmin())
    assert first in (1, 4)
    assert {int(i) for i in scores.argsort()[:2]} != {1, 4}


def test_what_remains_covers_what_goes_better_than_chance() -> None:
    make = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=make)
    rows = centres.repeat(6, 1) + 0.05 * torch.randn(30, 8, generator=make)
    kept = torch.zeros(30, dtype=torch.bool)
    kept[kernel_of_filters(rows, KernelConfig()).argsort()[-10:]] = True
    bandwidth = 0.5 * float(torch.pdist(rows).median())

    def least_covered(kept: Tensor) -> float:
        zeros = 20 * (-(rows.norm(dim=1) / bandwidth).square()).exp()
        everything = (-(torch.cdist(rows, rows) / bandwidth).square()).exp().sum(1)
        return float((coverage(rows, kept, bandwidth) + zeros / everything)[~kept].min())

    by_chance = []
    for seed in range(20):
        other = torch.zeros(30, dtype=torch.bool)
        other[torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:10]] = True
        by_chance.append(least_covered(other))
    assert least_covered(kept) > max(by_chance)


def test_a_million_weights_in_seconds_and_a_gigabyte() -> None:
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    scores = kernel(layer(weight), KernelWeightsConfig())
    seconds = time.process_time() - start
    assert scores.unique().numel() == 1_000_000
    # Measured on one core: 0.45 to 0.61 s. Processor time, and room, because a busy machine makes that grow too.
    assert seconds < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def test_settings_are_noticed_and_checked() -> None:
    data = layer(torch.randn(30, 10, generator=torch.Generator().manual_seed(0)))
    default = kernel(data, KernelWeightsConfig())
    assert not torch.equal(kernel(data, KernelWeightsConfig(bandwidth=0.1)), default)
    assert not torch.equal(kernel(data, KernelWeightsConfig(rounds=1)), default)
    rows = data.weight
    assert not torch.equal(
        kernel_of_filters(rows, KernelConfig(bandwidth=2.0)), kernel_of_filters(rows, KernelConfig())
    )
    for bad in (lambda: KernelWeightsConfig(bandwidth=0), lambda: KernelWeightsConfig(rounds=0)):
        with pytest.raises(ConfigError, match="is below"):
            bad()
    with pytest.raises(ConfigError, match="bandwidth=0 must be above 0"):
        KernelConfig(bandwidth=0)
