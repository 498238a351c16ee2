"""The oracle of structured pruning: removing units computes what zeroing them computes."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_macs, count_parameters
from lighten.graph.groups import Group, find_groups
from lighten.graph.labels import Labels, propagate
from lighten.graph.rewrite import remove_units_, zero_units_
from tests.graph.networks import NETWORKS, build

FOUND: dict[str, tuple[CapturedModule, Labels, list[Group]]] = {}


def found(name: str) -> tuple[CapturedModule, Labels, list[Group]]:
    if name not in FOUND:
        model, inputs = build(name)
        captured = capture(model, inputs)
        labels = propagate(captured, inputs)
        FOUND[name] = captured, labels, find_groups(labels)
    return FOUND[name]


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_removing_equals_zeroing(name: str, data: st.DataObject) -> None:
    captured, labels, groups = found(name)
    inputs = NETWORKS[name][1]
    chosen = [torch.zeros(0, dtype=torch.int64)]
    for group in groups:
        gone = data.draw(st.lists(st.integers(0, len(group.units) - 1), max_size=len(group.units) - 1, unique=True))
        chosen.append(group.units[gone])
    units = torch.cat(chosen)
    zeroed, removed = copy.deepcopy(captured), copy.deepcopy(captured)
    zero_units_(zeroed, labels, units)
    remove_units_(removed, labels, units, inputs)
    more = torch.utils._pytree.tree_map(lambda x: torch.cat([x, x * 0.5]), inputs)
    # float64 sums in another order: 1e-8 relative is the goal, 1e-10 is reached.
    torch.testing.assert_close(removed(*more), zeroed(*more), rtol=1e-10, atol=1e-10)
    assert (count_parameters(removed) < count_parameters(captured)) == bool(len(units))


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("seed", [32, 64]),
        ("resnet20", [16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64]),
        ("hard-coded-view", [8]),
        ("concatenation", [6, 4, 8]),
        ("chunk-and-swap", [8]),
        ("depthwise", [16, 4]),
        ("channel-shuffle", [6, 4, 6]),  # equal in both groups, and the shuffle ties j to j + 4
        ("pixel-shuffle", [16, 8]),
        ("split-slices", [10]),
        ("two-inputs", [8, 8]),
    ],
)
def test_every_group_that_can_go_is_found(name: str, units: list[int]) -> None:
    groups = found(name)[2]
    assert sorted(len(group.units) for group in groups) == sorted(units), [g.producers for g in groups]


def test_zeroing_changes_the_output() -> None:
    """The oracle would hold trivially if zeroing did nothing."""
    for name in NETWORKS:
        captured, labels, groups = found(name)
        zeroed = copy.deepcopy(captured)
        zero_units_(zeroed, labels, torch.cat([group.units[::2] for group in groups]))
        inputs = NETWORKS[name][1]
        assert (captured(*inputs) - zeroed(*inputs)).abs().max() > 1e-6, name


def test_halving_the_channels_of_the_seed_network_quarters_its_convolution() -> None:
    captured, labels, groups = found("seed")
    removed = copy.deepcopy(captured)
    remove_units_(removed, labels, torch.cat([g.units[::2] for g in groups]), NETWORKS["seed"][1])
    assert removed.conv2.weight.shape == (32, 16, 3, 3)
    assert removed.fc.weight.shape == (10, 32 * 36)
    # 16·9·30² + 32·16·9·13² + 10·1152 multiply–accumulates
    assert count_macs(removed, NETWORKS["seed"][1]) == 16 * 9 * 900 + 32 * 16 * 9 * 169 + 11520
