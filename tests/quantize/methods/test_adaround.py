import itertools

import pytest
import torch

from lighten.errors import ConfigError
from lighten.quantize.formats import IntegerFormat
from lighten.quantize.methods.adaround import AdaRoundConfig, adaround
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.moments import output_errors
from tests.quantize.methods.problems import INT4, problem


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [None, 8])
def test_outputs_are_closer_than_by_rounding_to_nearest(symmetric: bool, size: int | None) -> None:
    weight, x, moments = problem()
    form = IntegerFormat(bits=3, symmetric=symmetric)
    q, nearest = adaround(weight, form, size, AdaRoundConfig(), moments), rtn(weight, form, size, RTNConfig())
    ours, theirs = (((weight - w.dequantize()) @ x.T).square().mean() for w in (q, nearest))
    assert ours < 0.7 * theirs
    rows = [output_errors(weight, w, moments.hessian) for w in (q, nearest)]
    assert torch.all(rows[0] <= rows[1] * (1 + 1e-5))  # a row left as it was is summed up anew


def test_every_weight_goes_up_or_down_and_zeros_stay() -> None:
    weight, _, moments = problem()
    weight[:, ::4] = 0
    q = adaround(weight, INT4, 8, AdaRoundConfig(), moments)
    step = q.grid.scale.repeat_interleave(8, 1)
    assert torch.all((q.dequantize() - weight).abs() <= step * (1 + 1e-5))
    assert torch.all(q.dequantize()[:, ::4] == 0)


def test_a_small_problem_is_solved_nearly_as_well_as_by_trying_everything() -> None:
    weight, _, moments = problem(rows=6, columns=8)
    q = adaround(weight, INT4, None, AdaRoundConfig(), moments)
    nearest = rtn(weight, INT4, None, RTNConfig())
    exact = weight / nearest.grid.scale + nearest.grid.zero_point
    best = torch.full((6,), torch.inf)
    for ups in itertools.product((0, 1), repeat=8):
        levels = (exact.floor() + torch.tensor(ups)).clamp(0, 15)
        change = (levels - exact) * nearest.grid.scale
        best = torch.minimum(best, ((change @ moments.hessian[0]) * change).sum(1) / 2)
    ours, theirs = (output_errors(weight, w, moments.hessian).sum() for w in (q, nearest))
    # Where no single weight may turn any more, most of what there is to gain has been gained: three quarters at least.
    assert ours - best.sum() < 0.25 * (theirs - best.sum())


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"sweeps": -1},
        {"learning_rate": 0.0},
        {"weight_of_ends": 0.0},
        {"last_beta": 0.5},
        {"first_beta": 1.5},
    ],
)
def test_settings_are_checked(setting: dict) -> None:
    with pytest.raises(ConfigError):
        AdaRoundConfig(**setting)
