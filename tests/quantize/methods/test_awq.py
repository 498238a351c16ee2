import pytest
import torch
from torch import nn

from lighten.errors import ConfigError
from lighten.quantize import quantize
from lighten.quantize.formats import format_of
from lighten.quantize.methods.awq import AWQConfig, awq
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.moments import output_errors
from lighten.quantize.scheme import parse_scheme
from tests.quantize.methods.problems import INT4, moments_of, problem


@pytest.mark.parametrize("scheme", ["w4", "w3-g8", "nf4-g8", "fp8", "mxfp4"])
def test_outputs_are_closer_than_by_rounding_to_nearest(scheme: str) -> None:
    weight, x, moments = problem()
    parsed = parse_scheme(scheme)
    form = format_of(parsed)
    q = awq(weight, form, parsed.group_size, AWQConfig(), moments)
    nearest = rtn(weight, form, parsed.group_size, RTNConfig())
    errors = [((weight - w) @ x.T).square().mean() for w in (q.effective(), nearest.dequantize())]
    # The factors of powers of two that a block of 32 shares may all come to nothing.
    assert errors[0] <= errors[1] if scheme == "mxfp4" else errors[0] < errors[1]
    # What was minimized is that error: second moments sum it up, in float32.
    torch.testing.assert_close(output_errors(weight, q, moments.hessian).mean(), errors[0].double(), rtol=1e-3, atol=0)


def test_factors_grow_with_the_input_as_a_power_of_it() -> None:
    weight, _, moments = problem()
    q = awq(weight, INT4, None, AWQConfig(), moments)
    slopes = q.input_scale.log()[1:] - q.input_scale.log()[0]
    alphas = slopes / (moments.mean_abs[0].log()[1:] - moments.mean_abs[0].log()[0])
    torch.testing.assert_close(alphas, alphas[0].expand_as(alphas), rtol=1e-2, atol=0)  # a quotient of logs
    assert 0 < alphas[0] < 1


def test_more_candidates_find_no_worse_a_one() -> None:
    weight, _, moments = problem()
    few, many = (
        output_errors(weight, awq(weight, INT4, 8, AWQConfig(candidates=n), moments), moments.hessian).sum()
        for n in (5, 20)
    )
    assert many <= few


def test_inputs_of_one_size_have_factors_of_one() -> None:
    weight, _, _ = problem()
    for x in (torch.ones(3, 40), torch.zeros(3, 40)):
        assert torch.all(awq(weight, INT4, None, AWQConfig(), moments_of(x)).input_scale == 1)


@pytest.mark.parametrize("folds", [True, False])
def test_the_layer_norm_before_takes_the_division_over_where_nobody_else_reads_it(folds: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(40)
            self.linear = nn.Linear(40, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return self.linear(y) + (0 if folds else y[..., :24])

    torch.manual_seed(0)
    model, (_, x, _) = Block(), problem()
    with torch.no_grad():
        model.norm.weight.copy_(0.1 + torch.rand(40) ** 4 * 5)
        model.norm.bias.normal_()
    quantized = quantize(model, "w3-g8", method="awq", calibration=[x])
    assert bool([node for node in quantized.graph.nodes if "div" in str(node.target)]) is not folds
    y = model.norm(x)
    q = awq(model.linear.weight.detach(), format_of(parse_scheme("w3-g8")), 8, AWQConfig(), moments_of(y.detach()))
    wanted = torch.nn.functional.linear(y, q.effective(), model.linear.bias) + (0 if folds else y[..., :24])
    torch.testing.assert_close(quantized(x), wanted, rtol=1e-4, atol=1e-4)  # the moments are summed in another order
    assert quantized.plan.layers["linear"].method == "awq"


def test_candidates_are_checked() -> None:
    with pytest.raises(ConfigError, match="candidates=1"):
        AWQConfig(candidates=1)
