import copy

import pytest
import torch
from torch import Tensor, nn

from lighten.graph.capture import capture, get_tensor
from lighten.graph.replay import Replay
from tests.tiny import TinyNet


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.first(x))
        x += y  # in place
        return {"a": x, "b": self.second(x), "where": x.argmax(-1)}


@pytest.mark.parametrize("name", ["conv1.weight", "norm.running_mean", "conv2.bias", "fc.weight"])
def test_a_replay_is_the_model_with_that_tensor(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8)
    captured = capture(TinyNet().eval(), (x,))
    replay = Replay(captured, (x,))
    value = torch.randn_like(get_tensor(captured, name))
    other = copy.deepcopy(captured)
    get_tensor(other, name).data.copy_(value)
    (found,) = replay.outputs({name: value})
    assert torch.equal(found, other(x))
    assert torch.equal(replay.outputs()[0], captured(x))  # and nothing of it stays


def test_several_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    captured = capture(TwoOutputs().eval(), (x, y))
    replay = Replay(captured, (x, y))
    other = copy.deepcopy(captured)
    weight = torch.randn(3, 4)
    get_tensor(other, "second.weight").data.copy_(weight)
    a, b = replay.outputs({"second.weight": weight})
    assert torch.equal(a, captured(x, y)["a"])
    assert torch.equal(b, other(x, y)["b"])


def test_a_batch_that_does_not_fit_raises() -> None:
    captured = capture(TinyNet().eval(), (torch.randn(3, 1, 8, 8),))
    with pytest.raises(ValueError, match="2 inputs"):
        Replay(captured, (torch.randn(3, 1, 8, 8), torch.randn(1)))
