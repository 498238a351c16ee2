import pytest
import torch
from torch import nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.quantize.steps import STEPS, check_steps
from lighten.quantize.steps.bias_correction import give_bias_, mean_inputs, mean_shift


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (50, 6)),
        (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 6, 6)),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (5, 4, 7, 7)),
        (nn.Conv1d(4, 4, 3, groups=4), (5, 4, 7)),
    ],
)
def test_the_shift_is_the_mean_change_of_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    batches = [torch.rand(shape), torch.rand(shape)]
    captured = capture(layer, (batches[0],))
    (node,) = [n for n in captured.graph.nodes if n.op == "call_function" and "weight" in str(n.args)]
    (mean,) = mean_inputs(captured, [node], batches).values()
    change = torch.randn_like(layer.weight)
    before = torch.cat(batches)
    after = torch.func.functional_call(layer, {"weight": layer.weight + change, "bias": layer.bias}, (before,))
    wanted = (after - layer(before)).movedim(1, 0).flatten(1).mean(1)
    torch.testing.assert_close(mean_shift(change, mean).float(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_stay_where_they_were_on_average(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=bias)).eval()
    batches = [torch.rand(64, 3, 8, 8) for _ in range(2)]
    exact = torch.cat([model(x) for x in batches]).mean((0, 2, 3))
    plain, corrected = (
        (torch.cat([q(x) for x in batches]).mean((0, 2, 3)) - exact).abs().max()
        for q in (quantize(model, "w3a8", calibration=batches, steps=steps) for steps in ((), "bias-correction"))
    )
    assert corrected < plain / 3


def test_a_layer_without_bias_gets_one_of_zeros() -> None:
    x = torch.randn(3, 4)
    captured = capture(nn.Linear(4, 2, bias=False), (x,))
    before = captured(x)
    (node,) = captured.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    give_bias_(captured, node)
    captured.recompile()
    assert torch.equal(captured(x), before)
    assert torch.equal(captured.get_parameter("bias"), torch.zeros(2))


def test_steps_are_done_in_one_order_and_checked() -> None:
    assert check_steps(reversed(STEPS)) == STEPS
    assert check_steps("smoothquant") == ("smoothquant",)
    with pytest.raises(ConfigError, match=r"There is no step 'bias'\. Known: equalization, smoothquant, bias-corr"):
        check_steps(["bias"])


def test_weights_alone_know_no_steps() -> None:
    with pytest.raises(ConfigError, match=r"steps=\('equalization',\) has no meaning for w4"):
        quantize(nn.Linear(2, 2), "w4", example_inputs=(torch.ones(1, 2),), steps="equalization")
