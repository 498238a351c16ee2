import copy

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import CaptureError
from lighten.graph.capture import capture
from tests.graph.networks import NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_graph_computes_the_same_at_any_batch_size(name: str) -> None:
    model, inputs = build(name)
    captured = capture(model, inputs)
    more = torch.utils._pytree.tree_map(lambda x: torch.cat([x, x + 0.1, x - 0.1]), inputs)
    torch.testing.assert_close(captured(*more), model(*more), rtol=1e-12, atol=1e-12)
    assert captured.batch_is_dynamic
    assert list(captured.state_dict()) == [k for k in model.state_dict() if k in captured.state_dict()]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)).relu_())


def test_training_mode_drops_and_normalizes_like_the_original() -> None:
    model, x = Noisy(), torch.randn(4, 1, 8, 8)
    captured = capture(model, (x,)).train()
    model.train()
    torch.manual_seed(3)
    want = model(x)
    torch.manual_seed(3)
    assert torch.equal(captured(x), want)
    assert torch.equal(captured.norm.running_mean, model.norm.running_mean)
    assert not captured.norm.running_mean.eq(0).any()


def test_a_copy_keeps_its_own_mode_and_its_plan() -> None:
    captured = capture(Noisy(), (torch.randn(2, 1, 8, 8),))
    copied = copy.deepcopy(captured).train()
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(captured(x), captured(x))
    assert not torch.equal(copied(x), copied(x))
    assert copied.plan == captured.plan


def test_capture_leaves_the_model_as_it_was() -> None:
    model = Noisy().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture(model, (torch.randn(2, 1, 8, 8),))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"Branch cannot be traced .*test_capture.py:\d+: return x if x.sum"):
        capture(Branch(), (torch.ones(2, 2),))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 4).flatten(1) * 2


def test_a_fixed_batch_is_captured_and_said() -> None:
    captured = capture(FixedBatch(), (torch.ones(2, 12),))
    assert not captured.batch_is_dynamic
    assert captured(torch.ones(2, 12)).shape == (2, 12)
