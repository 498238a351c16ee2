import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.quantize.steps.smoothquant import SmoothQuantConfig, smooth_, smoothing_factors


class Block(nn.Module):
    """A transformer's block without attention's arithmetic: three readers of one norm, and a wide layer in between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.second = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.q(y) * self.k(y) + self.v(y)
        return x + self.down(F.relu(self.up(self.second(x))))


@pytest.fixture
def block() -> tuple[Block, list[Tensor]]:
    """Norms that enlarge two channels a hundredfold, as those of large language models do."""
    torch.manual_seed(0)
    model = Block().eval()
    with torch.no_grad():
        for norm in (model.norm, model.second):
            norm.weight[[3, 7]] *= 100
        for linear in (model.q, model.k, model.v, model.up):
            linear.weight[:, [3, 7]] /= 100
    return model, [torch.randn(64, 16) for _ in range(2)]


def test_factors_by_hand() -> None:
    factors = smoothing_factors(torch.tensor([16.0, 4.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 1.0, 0.0]), alpha=0.5)
    assert factors.tolist() == [4.0, 1.0, 1.0, 1.0]
    assert smoothing_factors(torch.tensor([16.0]), torch.tensor([2.0]), alpha=1.0).item() == 16
    assert smoothing_factors(torch.tensor([16.0]), torch.tensor([2.0]), alpha=0.0).item() == 0.5


def test_the_function_stays_and_outliers_are_gone(block) -> None:
    model, batches = block
    captured = capture(model, (batches[0],))
    smoothed = smooth_(captured, batches, SmoothQuantConfig())
    assert [node.meta["layer"] for node in smoothed] == ["norm", "second", ""]
    # A factor rounds a weight and what makes its input once each, 2^-24 of sums of up to 32 terms, over three layers.
    torch.testing.assert_close(captured(batches[0]), model(batches[0]), rtol=1e-4, atol=1e-4)
    scale = captured.get_parameter("norm.weight").abs()
    assert scale.max() < 20 * scale.median()
    assert model.norm.weight.abs().max() > 50 * model.norm.weight.abs().median()


def test_rounding_costs_less(block) -> None:
    model, batches = block
    exact = model(batches[0]).detach()
    plain, smooth = (
        (quantize(model, "w8a8", calibration=batches, steps=steps, observer="minmax")(batches[0]) - exact).norm()
        for steps in ((), "smoothquant")
    )
    assert smooth < plain / 3


def test_what_others_read_too_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y + self.linear(y)

    x = torch.randn(5, 4)
    assert not smooth_(capture(Shared(), (x,)), [x], SmoothQuantConfig())


def test_alpha_is_heeded_and_checked(block) -> None:
    model, batches = block
    weights = []
    for alpha in (0.2, 0.8):
        captured = capture(model, (batches[0],))
        smooth_(captured, batches, SmoothQuantConfig(alpha=alpha))
        weights.append(captured.get_parameter("up.weight"))
    assert not torch.equal(*weights)
    with pytest.raises(ConfigError, match=r"alpha=1.5 is outside 0..1"):
        SmoothQuantConfig(alpha=1.5)
