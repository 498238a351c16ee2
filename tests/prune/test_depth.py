import pytest
import torch
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.graph.count import count_parameters
from lighten.prune import prune
from lighten.prune.depth import find_blocks
from tests import networks


class Stack(nn.Module):
    """Four blocks x + s·f(x): the scales say how much each matters."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(4)])
        self.scales = (1.0, 0.01, 0.5, 0.1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        return self.head(x)


def test_the_blocks_that_change_least_go() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(8, 6)
    pruned = prune(model, 0.5, granularity="layer", example_inputs=(x,))
    assert set(pruned.plan.layers) == {"blocks.1.0", "blocks.1.2", "blocks.3.0", "blocks.3.2"}
    assert count_parameters(pruned) == count_parameters(model) - 4 * 42
    y = torch.tanh(x)
    y = y + model.blocks[0](y)
    torch.testing.assert_close(pruned(x), model.head(y + 0.5 * model.blocks[2](y)))
    pruned.train()(x).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_calibration_decides() -> None:
    """On this batch the second block alone does anything: all others read zeros and have no bias."""
    model = Stack()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for layer in (block[0], block[2]):
                layer.bias.zero_()
                layer.weight.copy_(torch.eye(6) if i == 1 else torch.zeros(6, 6))
    pruned = prune(model, 0.75, granularity="layer", calibration=[torch.rand(4, 6)])
    assert not any(name.startswith("blocks.1") for name in pruned.plan.layers)


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 7), ("vit", 4), ("gpt2", 4), ("conformer", 4)])
def test_blocks_of_real_networks(name: str, blocks: int) -> None:
    model, inputs = networks.build(name)
    captured = capture(model, inputs)
    assert len(find_blocks(captured, inputs)) == blocks
    pruned = prune(captured, 0.5, granularity="layer", example_inputs=inputs)
    assert count_parameters(pruned) < count_parameters(captured)
    assert pruned(*inputs).shape == model(*inputs).shape


def test_excluded_blocks_stay_and_none_is_an_error() -> None:
    model, x = Stack(), (torch.randn(8, 6),)
    pruned = prune(model, 0.5, granularity="layer", exclude=["blocks.[123]"], example_inputs=x)
    assert pruned.plan.layers == {}
    with pytest.raises(ConfigError, match="found no residual block"):
        prune(nn.Linear(6, 2), 0.5, granularity="layer", example_inputs=x)
