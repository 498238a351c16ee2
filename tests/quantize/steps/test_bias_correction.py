import pytest
import torch
from torch import Tensor, fx, nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule, capture, layer_of
from lighten.quantize import quantize
from lighten.quantize.ranges import watch
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


def means_of_layers(captured: CapturedModule, batches: list[Tensor], layers: list[str]) -> list[Tensor]:
    """[channels] float64 of each of the convolutions and linear layers, over batches."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(node: fx.Node, value: Tensor) -> None:
        axis = 1 if value.ndim == 4 else -1
        found[layer_of(node)].append(value.movedim(axis, 0).flatten(1).double())

    targets = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    watch(captured, [node for node in captured.graph.nodes if node.target in targets], batches, look)
    return [torch.cat(parts, 1).mean(1) for parts in found.values()]


def test_every_layer_is_on_average_where_the_float_one_is() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 5)).eval()
    batches = [3 * torch.rand(n, 3, 8, 8) for n in (8, 5)]  # of two sizes: means are over samples, not over batches
    names = ["0", "2", "4", "6"]
    exact = means_of_layers(capture(model, (batches[0],)), batches, names)
    # Inputs of 4 bits: most of what is taken off is theirs, which the weights do not tell.
    quantized = quantize(model, "w3a4", calibration=batches, steps="bias-correction")
    for name, mean, wanted in zip(names, means_of_layers(quantized, batches, names), exact, strict=True):
        step = quantized.get_buffer(f"{name}.bias_scale").double()
        # A bias is a whole number of steps; 1e-5 is for sums of up to 72 float32 products.
        assert torch.all((mean - wanted).abs() <= step / 2 + 1e-5 * wanted.abs().amax())


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


def test_weights_alone_are_corrected_and_smooth_nothing() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Flatten(), nn.Linear(128, 5)]
    model = nn.Sequential(*layers).eval()
    batches = [torch.rand(n, 3, 8, 8) for n in (8, 5)]
    exact = means_of_layers(capture(model, (batches[0],)), batches, ["0", "2", "4"])
    quantized = quantize(model, "w3", calibration=batches, steps="bias-correction")
    for mean, wanted in zip(means_of_layers(quantized, batches, ["0", "2", "4"]), exact, strict=True):
        torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-5)  # float32 sums of up to 128 products
    assert quantized.plan.steps == ["bias-correction"]
    both = quantize(model, "w3", method="gptq", calibration=batches, steps=("equalization", "bias-correction"))
    assert both.plan.steps == ["equalization", "bias-correction"]
    with pytest.raises(ConfigError, match=r"steps=\('smoothquant',\) has no meaning for w4"):
        quantize(model, "w4", calibration=batches, steps="smoothquant")
    with pytest.raises(TaskError, match=r"bias-correction looks at activations, and got none"):
        quantize(model, "w4", example_inputs=(batches[0],), steps="bias-correction")
