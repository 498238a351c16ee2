"""What the criteria for channels see, against removing the channel by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.groups import Group, find_groups
from lighten.graph.labels import Labels, propagate
from lighten.prune.channels import unit_rows
from lighten.prune.importance.fpgm import FPGMConfig, fpgm
from lighten.prune.importance.taylor import TaylorConfig, taylor
from lighten.prune.importance.unit_data import (
    UnitData,
    batch_norm_scale,
    gradient_products,
    mean_activity,
    score_units,
    unit_importance,
)

X = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.ReLU(),
        nn.Linear(5, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1.5, 6))
        model[1].running_var.uniform_(0.5, 2)
        model[1].running_mean.normal_()
    return model.eval()


def seen(model: nn.Module) -> tuple[CapturedModule, Labels, list[Group]]:
    captured = capture(model, (X,))
    labels = propagate(captured, (X,))
    return captured, labels, find_groups(labels)


def test_scale_is_the_size_of_gamma() -> None:
    model = network()
    captured, _, groups = seen(model)
    torch.testing.assert_close(batch_norm_scale(captured, groups[0]), model[1].weight.detach().abs())
    with pytest.raises(ConfigError, match=r"cannot rank the channels of '4'.*exclude=\['4'\]"):
        batch_norm_scale(captured, groups[1])


def test_activity_is_what_the_next_layer_reads() -> None:
    model = network()
    captured, labels, groups = seen(model)
    first, second = mean_activity(captured, labels, groups, [X[:5], X[5:10]])
    halves = [model[:3](x).abs().mean((0, 2, 3)) for x in (X[:5], X[5:10])]
    torch.testing.assert_close(first, (halves[0] + halves[1]).detach() / 2)
    halves = [model[:6](x).abs().mean(0) for x in (X[:5], X[5:10])]
    torch.testing.assert_close(second, (halves[0] + halves[1]).detach() / 2)


def gates(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """d loss / d gate, with a gate on every channel after batch norm: what Σ w g has to be."""
    gate = torch.ones(6, requires_grad=True)
    out = model[2:](model[:2](x) * gate[:, None, None])
    return torch.autograd.grad(F.cross_entropy(out, y), gate)[0]


def test_products_are_the_gradient_of_a_gate_on_the_channel() -> None:
    model = network()
    captured, _, groups = seen(model)
    products, squares = gradient_products(captured, groups, [(X[:7], Y[:7]), (X[7:], Y[7:])], F.cross_entropy)[0]
    expected = torch.stack([gates(model, X[i : i + 1], Y[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(products, expected, rtol=1e-4, atol=1e-6)
    assert squares.shape == (6,)
    assert (squares >= 0).all()


def test_first_order_predicts_a_small_change() -> None:
    model = network()
    captured, _, groups = seen(model)
    products, _ = gradient_products(captured, groups, [(X, Y)], F.cross_entropy)[0]
    step = 1e-2
    for channel in range(6):
        moved = network()
        with torch.no_grad():
            moved[1].weight[channel] *= 1 - step
            moved[1].bias[channel] *= 1 - step
            change = F.cross_entropy(moved(X), Y) - F.cross_entropy(model(X), Y)
        assert float(change) == pytest.approx(-step * float(products[:, channel].mean()), rel=0.05, abs=2e-6)


def test_taylor_by_hand() -> None:
    units = UnitData(rows=torch.ones(2, 1), products=torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
    assert taylor(units, TaylorConfig()).tolist() == [1.0, 4.0]
    assert taylor(units, TaylorConfig(order=2)).tolist() == [0.25, 0.0]
    with pytest.raises(ConfigError, match="order=3"):
        TaylorConfig(order=3)


def test_fpgm_takes_the_median_first() -> None:
    rows = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 0.1], [2.0, 3.0]])
    scores = fpgm(rows, FPGMConfig())
    assert int(scores.argmin()) == 2
    by_hand = [sum((a - b).norm() for b in rows) for a in rows]
    torch.testing.assert_close(scores, torch.stack(by_hand))


@pytest.mark.parametrize(
    "name", ["l2", "fpgm", "kernel", *[entry.name for entry in unit_importance if entry.name != "bn-scale"]]
)
def test_every_criterion_scores_every_group(name: str) -> None:
    captured, labels, groups = seen(network())
    rows = unit_rows(captured, groups)
    scores = score_units(captured, labels, groups, rows, name, [(X, Y)], F.cross_entropy)
    assert [s.shape for s in scores] == [(6,), (5,)]
    assert all(s.isfinite().all() for s in scores)


def test_a_criterion_without_its_data_is_refused() -> None:
    captured, labels, groups = seen(network())
    with pytest.raises(TaskError, match="importance='taylor' looks at data and got none"):
        score_units(captured, labels, groups, unit_rows(captured, groups), "taylor")
    with pytest.raises(TaskError, match="batch 0 does not fit"):
        score_units(captured, labels, groups, unit_rows(captured, groups), "taylor", [torch.ones(2, 9)])
