import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture, get_tensor
from lighten.quantize import quantize
from lighten.quantize.placement import cuts_channels
from lighten.quantize.steps.equalization import (
    EqualizationConfig,
    equalize_,
    equalizing_factors,
    find_pairs,
)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions in turn, pooling between, and a head of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.grouped = nn.Conv2d(24, 12, 3, groups=3)
        self.fc1 = nn.Linear(12, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.depthwise(F.relu(self.stem(x)))), 2)
        x = F.leaky_relu(self.grouped(F.relu(self.pointwise(x)))).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


def unbalanced(seed: int = 0) -> Separable:
    """The same function as before, its channels multiplied by factors from 1/100 to 100 on the way."""
    torch.manual_seed(seed)
    model = Separable().eval()
    with torch.no_grad():
        for first, second in (("stem", "depthwise"), ("depthwise", "pointwise")):
            factors = 10 ** (4 * torch.rand(16) - 2)
            made, read = getattr(model, first), getattr(model, second)
            made.weight *= factors.view(-1, 1, 1, 1)
            made.bias *= factors
            read.weight /= factors.view((-1, 1, 1, 1) if read.groups > 1 else (1, -1, 1, 1))
    return model


def test_factors_by_hand() -> None:
    factors = equalizing_factors(torch.tensor([8.0, 2.0, 0.0, 1.0]), torch.tensor([2.0, 2.0, 1.0, 0.0]))
    assert factors.tolist() == [2.0, 1.0, 1.0, 1.0]


def test_pairs_are_those_between_which_nothing_else_reads() -> None:
    captured = capture(Separable().eval(), (torch.ones(1, 3, 8, 8),))
    names = [tuple(node.meta["layer"] for node in pair) for pair in find_pairs(captured)]
    assert names == [("stem", "depthwise"), ("depthwise", "pointwise"), ("pointwise", "grouped"), ("fc1", "fc2")]


def test_the_function_stays_and_ranges_become_equal() -> None:
    model, x = unbalanced(), torch.randn(4, 3, 8, 8)
    captured = capture(model, (x,))
    exact = copy.deepcopy(model).double()(x.double())
    pairs = equalize_(captured, EqualizationConfig(rounds=100, tolerance=1e-6))
    # Each weight was rounded at most once a round for either side; 2^-24 each, over six layers, and errors add at most
    # in proportion to the sum of magnitudes, of which sums of up to 216 terms cancel all but a fraction.
    assert (captured(x) - exact).norm() <= 1e-4 * exact.norm()
    for first, second in pairs:
        weights = [get_tensor(captured, node.args[1].target).detach() for node in (first, second)]
        made = weights[0].flatten(1).abs().amax(1)
        groups = second.args[6] if len(second.args) > 6 else 1
        read = weights[1].unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1).abs().amax(1)
        torch.testing.assert_close(made, read, rtol=1e-2, atol=0)


def test_a_depthwise_net_that_falls_apart_per_tensor_is_recovered() -> None:
    model = unbalanced()
    batches = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    exact = model(batches[0]).detach()

    def error(model: nn.Module, scheme: str, steps: tuple[str, ...] = ()) -> float:
        quantized = quantize(model, scheme, calibration=batches, steps=steps)
        assert quantized.plan.steps == list(steps)
        return float((quantized(batches[0]) - exact).norm() / (exact - exact.mean(0)).norm())

    torch.manual_seed(0)
    never_unbalanced = error(Separable().eval(), "w8a8-tensor")
    assert error(model, "w8a8-tensor") > 1  # more than all that tells one input from another
    recovered = error(model, "w8a8-tensor", ("equalization",))
    assert recovered < 1.1 * never_unbalanced < 0.2
    # One scale a channel does not help by itself: activations have one scale a tensor, and were as unequal.
    assert error(model, "w8a8") > 1 > 5 * error(model, "w8a8", ("equalization",))


def test_channels_of_zeros_stay_and_make_no_nan() -> None:
    model = unbalanced()
    with torch.no_grad():
        model.depthwise.weight[3] = 0
        model.pointwise.weight[:, 5] = 0
    x = torch.randn(2, 3, 8, 8)
    captured = capture(model, (x,))
    equalize_(captured, EqualizationConfig())
    torch.testing.assert_close(captured(x), model(x), rtol=1e-3, atol=1e-5)
    assert torch.all(captured.get_parameter("depthwise.weight")[3] == 0)


class Clipped(nn.Module):
    """relu6 behind a stem and a depthwise convolution; zeros around what the latter reads, as TensorFlow pads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, groups=16)
        self.pointwise = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu6(self.stem(x)), (0, 1, 0, 1))
        return self.pointwise(F.relu6(self.depthwise(x))).mean((2, 3))


def clipped(seed: int = 0) -> Clipped:
    """Channels of the stem and the depthwise convolution are between 1/1000 and 3 times their usual size."""
    torch.manual_seed(seed)
    model = Clipped().eval()
    with torch.no_grad():
        for made, read in ((model.stem, model.depthwise), (model.depthwise, model.pointwise)):
            factors = 10 ** torch.linspace(-3, 0.5, 16)[torch.randperm(16)]
            made.weight *= 4 * factors.view(-1, 1, 1, 1)
            made.bias *= 4 * factors
            read.weight /= factors.view((-1, 1, 1, 1) if read.groups > 1 else (1, -1, 1, 1))
    return model


def test_relu6_keeps_its_function_and_channels_get_ends_of_their_own() -> None:
    model = clipped()
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    captured = capture(model, (x,))
    pairs = equalize_(captured, EqualizationConfig())
    assert [tuple(n.meta["layer"] for n in pair) for pair in pairs] == [
        ("stem", "depthwise"),
        ("depthwise", "pointwise"),
    ]
    exact = copy.deepcopy(model).double()(x.double())
    # As above: 2^-24 for each of at most 20 roundings of a weight, and sums of up to 27 terms that cancel in part.
    assert (captured(x) - exact).norm() <= 1e-4 * exact.norm()
    cuts = [node for node in captured.graph.nodes if cuts_channels(node)]
    ends = [get_tensor(captured, str(cut.args[1].target)) for cut in cuts]
    assert [end.shape for end in ends] == [(16, 1, 1)] * 2
    for end, layer in zip(ends, ("stem", "depthwise"), strict=True):
        before, after = (m.get_parameter(f"{layer}.bias").detach() for m in (model, captured))
        torch.testing.assert_close(end.flatten() / 6, after / before)
    cut_off = (model.stem(x) > 6).float().mean((0, 2, 3))
    assert 0 < int((cut_off > 0).sum()) < 16  # both kinds of channels are there


def test_ends_of_channels_of_linear_layers_and_behind_pooling() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 3, 1)
            self.a, self.b = nn.Linear(12, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(F.relu6(F.max_pool1d(F.relu6(self.conv(x)), 2)))
            return self.b(F.hardtanh(self.a(x.flatten(1)), 0.0, 0.5))

    torch.manual_seed(0)
    model, x = Net().eval(), 20 * torch.randn(32, 2, 10)
    captured = capture(model, (x,))
    assert len(equalize_(captured, EqualizationConfig())) == 2
    assert sum(cuts_channels(node) for node in captured.graph.nodes) == 3
    torch.testing.assert_close(captured(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_range_spans_what_is_left_once_channels_are_cut() -> None:
    model = clipped()
    batches = [20 * torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))]
    quantized = quantize(model, "w8a8-tensor", calibration=batches, steps="equalization", observer="minmax")
    for node in quantized.graph.nodes:
        if cuts_channels(node):
            scale, end = (get_tensor(quantized, str(n.target)) for n in (node.args[0].args[1], node.args[1]))
            assert float(scale) * 255 <= float(end.max()) * (1 + 1e-6)


def test_a_relu6_net_is_nearer_per_tensor_once_equalized() -> None:
    model = clipped()
    batches = [torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    exact = model(batches[0])
    errors = [
        (quantize(model, "w8a8-tensor", calibration=batches, steps=steps)(batches[0]) - exact).norm() / exact.norm()
        for steps in ((), "equalization")
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
    ],
)
def test_settings_are_checked(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EqualizationConfig(**setting)


def test_every_setting_is_heeded() -> None:
    def weight(**setting: float) -> Tensor:
        captured = capture(unbalanced(), (torch.ones(1, 3, 8, 8),))
        equalize_(captured, EqualizationConfig(**setting))
        return captured.get_parameter("depthwise.weight")

    assert not torch.equal(weight(), weight(rounds=1))
    assert torch.equal(weight(tolerance=1e9), weight(rounds=1))
