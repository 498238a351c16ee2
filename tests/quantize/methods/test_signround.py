from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.errors import ConfigError
from lighten.quantize import quantize
from lighten.quantize.formats import IntegerFormat
from lighten.quantize.formats.grid import Grid, by_groups
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.methods.signround import SignRoundConfig, range_of_groups, round_through, signround
from lighten.quantize.moments import output_errors
from tests.quantize.methods.problems import INT4, moments_of, problem


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [None, 8, 12])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_row_is_worse_than_by_rounding_to_nearest_and_all_together_are_better(
    bits: int, symmetric: bool, size: int | None
) -> None:
    weight, _, moments = problem()
    form = IntegerFormat(bits=bits, symmetric=symmetric)
    q, nearest = signround(weight, form, size, SignRoundConfig(), moments), rtn(weight, form, size, RTNConfig())
    ours, theirs = (output_errors(weight, w, moments.hessian) for w in (q, nearest))
    assert torch.all(ours <= theirs * (1 + 1e-5))  # a row left as it was is summed up anew
    assert ours.sum() < 0.4 * theirs.sum()


def test_a_single_step_changes_nothing_that_it_does_not_better() -> None:
    """The first of the two weights that are compared is rounding to nearest, bit for bit."""
    weight, _, moments = problem()
    q, nearest = (
        signround(weight, INT4, 8, SignRoundConfig(steps=1, learning_rate=1e-9, sweeps=0), moments),
        rtn(weight, INT4, 8, RTNConfig()),
    )
    assert torch.equal(q.dequantize(), nearest.dequantize())


def test_zeros_stay_and_nothing_leaves_its_neighbours_on_a_grid_within_the_range() -> None:
    weight, _, moments = problem()
    weight[:, ::4] = 0
    assert torch.all(signround(weight, INT4, 8, SignRoundConfig(), moments).dequantize()[:, ::4] == 0)
    q, nearest = signround(weight, INT4, 8, SignRoundConfig(sweeps=0), moments), rtn(weight, INT4, 8, RTNConfig())
    assert torch.all(q.dequantize()[:, ::4] == 0)
    assert torch.all(q.grid.scale <= nearest.grid.scale)
    step = q.grid.scale.repeat_interleave(8, 1)
    codes = weight / step + q.grid.zero_point.repeat_interleave(8, 1)
    inside = (codes >= 0) & (codes <= 15)
    assert torch.all((q.dequantize() - weight).abs()[inside] <= step[inside] * (1 + 1e-5))


@pytest.mark.parametrize("symmetric", [True, False])
def test_in_the_end_no_single_weight_has_a_better_level(symmetric: bool) -> None:
    weight, _, moments = problem(rows=4, columns=12)
    form = IntegerFormat(bits=3, symmetric=symmetric)
    q = signround(weight, form, 4, SignRoundConfig(sweeps=100, damping=1e-6), moments)
    least = output_errors(weight, q, moments.hessian)
    for column in range(12):
        for code in range(int(symmetric), 8):
            codes = q.codes.clone()
            codes[:, column] = code
            error = output_errors(weight, replace(q, codes=codes), moments.hessian)
            # The damping, and float32 where two levels are as good as each other.
            assert torch.all(error >= least * (1 - 1e-4)), (column, code)


def test_inputs_that_never_were_leave_their_weights_alone() -> None:
    weight, x, _ = problem(rows=4, columns=12)
    x[:, 3] = 0
    q, nearest = (
        signround(weight, INT4, None, SignRoundConfig(steps=1, learning_rate=1e-9), moments_of(x)),
        rtn(weight, INT4, None, RTNConfig()),
    )
    assert torch.equal(q.codes[:, 3], nearest.codes[:, 3])


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_packed_computes_what_was_learned(symmetric: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(13, 6), torch.randn(20, 13)
    scheme = f"w3-g5-{'sym' if symmetric else 'asym'}"
    quantized = quantize(model, scheme, method="signround", calibration=[x])
    q = signround(
        model.weight.detach(), IntegerFormat(bits=3, symmetric=symmetric), 5, SignRoundConfig(), moments_of(x)
    )
    assert torch.equal(quantized(x), F.linear(x, q.dequantize(), model.bias))


@pytest.mark.parametrize("size", [8, 12])
def test_ranges_are_those_of_the_format(size: int) -> None:
    weight, _, _ = problem()
    grid = INT4.grid_of_range(*range_of_groups(weight, size))

    def work(groups: torch.Tensor) -> tuple[Grid, torch.Tensor]:
        return INT4.fit(groups), torch.zeros_like(groups)

    assert torch.equal(grid.scale, by_groups(weight, INT4, size, work).grid.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_are_those_of_the_grid_that_is_not_rounded(symmetric: bool) -> None:
    """A weight inside the range moves with its offset, a clipped one with the end of the range."""
    weight = torch.tensor([[-1.0, 0.3, 0.9, 2.0]])
    form = IntegerFormat(bits=4, symmetric=symmetric)
    low, high = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[1.5]], requires_grad=True)
    offset = torch.zeros_like(weight).requires_grad_()
    restored, _, scale, _ = round_through(weight, offset, low, high, form, 4)
    slopes = torch.autograd.grad(restored[0, 3], (offset, low, high), retain_graph=True)
    assert torch.all(slopes[0] == 0)  # 2.0 is clipped: only the range moves it
    assert float(slopes[2]) == pytest.approx(1.0, abs=0.1)  # up to the rounding of the zero point
    (inner,) = torch.autograd.grad(restored[0, 1], offset)
    torch.testing.assert_close(inner, torch.tensor([[0.0, 1.0, 0.0, 0.0]]) * scale)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"learning_rate": 0.0}, {"sweeps": -1}, {"damping": 0.0}])
def test_settings_are_checked(setting: dict) -> None:
    with pytest.raises(ConfigError):
        SignRoundConfig(**setting)
