"""Scope "macs", and what a unit costs, by hand and by counting again."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_macs, node_macs
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.graph.rewrite import remove_units_
from lighten.prune import prune
from lighten.prune.channels import unit_rows
from lighten.prune.importance.unit_data import score_units
from lighten.prune.select import SelectConfig, select_units
from lighten.prune.unit_macs import unit_macs
from lighten.tasks.networks import ResNet20
from tests import networks

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Costly(nn.Module):
    """Filters on 8 × 8 places, then as many on one: of two channels alike, the first costs 64 times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.third = weight_norm(nn.Linear(4, 6))
        self.proj = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)).relu().mean((2, 3))
        return self.third(x).relu() @ self.proj


def test_macs_of_units_by_hand() -> None:
    captured = capture(Costly().eval(), (X,))
    groups = find_groups(propagate(captured, (X,)))
    costs = {group.name: cost.tolist() for group, cost in zip(groups, unit_macs(captured, groups, (X,)), strict=True)}
    assert costs["first"] == [64 * (3 + 4)] * 4
    assert costs["second"] == [64 * 4 + 6] * 4
    assert list(costs.values())[2] == [4 + 5] * 6


def macs_of_weights(captured: CapturedModule, inputs: tuple) -> int:
    """All but those of products of activations."""
    found = node_macs(captured, inputs)
    return sum(macs for node, macs in found.items() if any(n.op == "get_attr" for n in node.all_input_nodes))


@pytest.mark.parametrize("name", ["seed", "resnet20", "mobilenet-v2", "gpt2", "swin"])
def test_a_unit_less_saves_what_it_costs(name: str) -> None:
    model, inputs = networks.build(name)
    captured = capture(model, inputs)
    assert sum(node_macs(captured, inputs).values()) == count_macs(captured, inputs)
    labels = propagate(captured, inputs)
    groups = find_groups(labels)
    before = macs_of_weights(captured, inputs)
    for group, cost in zip(groups, unit_macs(captured, groups, inputs), strict=True):
        parameters = [slot.parameter for slot in group.slots if slot.role != "carried"]
        if len(set(parameters)) < len(parameters):
            continue  # a layer of it reads and makes the unit: the place where both meet is counted twice
        smaller = capture(captured, inputs)
        remove_units_(smaller, labels, group.units[:1], inputs)
        assert before - macs_of_weights(smaller, inputs) == pytest.approx(float(cost[0]))


def test_of_channels_that_matter_as_much_the_costly_ones_go() -> None:
    scores = [torch.full((4,), 1.0), torch.full((4,), 0.9)]
    costs = [torch.full((4,), 64.0), torch.full((4,), 1.0)]
    assert [len(g) for g in select_units(scores, SelectConfig(ratio=0.25, scope="macs"), costs=costs)] == [2, 0]
    assert [len(g) for g in select_units(scores, SelectConfig(ratio=0.25, scope="global"))] == [2, 0]
    assert [len(g) for g in select_units(scores, SelectConfig(ratio=0.25, scope="macs"), costs=costs[::-1])] == [0, 2]


def test_the_verb_weighs_channels_against_macs() -> None:
    model, batches = ResNet20().eval(), [(torch.randn(4, 1, 28, 28), torch.arange(4))]
    captured = capture(model, batches[0][:1])
    labels = propagate(captured, batches[0][:1])
    groups = find_groups(labels)
    scores = score_units(captured, labels, groups, unit_rows(captured, groups), "taylor", batches, F.cross_entropy)
    costs = unit_macs(captured, groups, batches[0][:1])
    gone = select_units(scores, SelectConfig(ratio=0.4, scope="macs"), costs=costs)
    pruned = prune(model, 0.4, importance="taylor", scope="macs", calibration=batches, loss=F.cross_entropy)
    for group, indices in zip(groups, gone, strict=True):
        layer = pruned.plan.layers.get(group.name)
        assert (0 if layer is None else layer.channels - layer.kept) == len(indices)


def test_scores_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ConfigError, match="scores of 'l2' do not compare between layers"):
        prune(Costly(), 0.5, scope="macs", example_inputs=(X,))
