import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lighten
from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.prune import prune
from lighten.prune.importance.unit_data import unit_importance
from lighten.prune.select import SelectConfig, select_units
from lighten.registry import importance
from tests import networks
from tests.graph.networks import NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_each_layer_goes_and_the_rest_trains(name: str) -> None:
    model, inputs = build(name)
    pruned = prune(model, 0.5, scope="layer", example_inputs=inputs)
    assert all(layer.kept == layer.channels / 2 for layer in pruned.plan.layers.values())
    pruned.train()
    pruned(*torch.utils._pytree.tree_map(lambda x: torch.cat([x, x]), inputs)).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_the_model_is_not_modified() -> None:
    model, inputs = build("resnet20")
    before = copy.deepcopy(model.state_dict())
    prune(model, 0.5, example_inputs=inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_smallest_filters_go() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [1.0], [4.0], [2.0]]).expand(4, 3))
    pruned = prune(model, 0.5, example_inputs=(torch.ones(2, 3),))
    assert pruned.get_parameter("0.weight")[:, 0].tolist() == [3.0, 4.0]


def test_batch_norm_counts_in_the_size_of_a_filter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([9.0, 1.0]))
    pruned = prune(model, 0.5, example_inputs=(torch.ones(2, 1, 3, 3),))
    assert pruned.get_parameter("0.weight").flatten().tolist() == [1.0]


def test_round_to_and_exclude_are_heeded() -> None:
    model, inputs = build("resnet20")
    pruned = prune(model, 0.4, scope="layer", round_to=8, exclude=["layer3"], example_inputs=inputs)
    kept = {name: layer.kept for name, layer in pruned.plan.layers.items()}
    assert kept["layer1.0.conv1"] == 16  # 60 % of 16 is 10, up to a multiple of 8
    assert kept["layer2.0.conv1"] == 24
    assert not any(name.startswith("layer3") for name in kept)
    assert pruned.get_parameter("layer3.0.conv1.weight").shape[0] == 64


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_layers_may_have_ratios_of_their_own(scope: str) -> None:
    model, inputs = build("resnet20")
    overrides = {"layer3": 0.75, "layer3.0.conv1": 0.0}
    pruned = prune(model, 0.25, scope=scope, overrides=overrides, example_inputs=inputs)
    kept = {name: layer.kept for name, layer in pruned.plan.layers.items()}
    assert kept["layer3.1.conv1"] == 16
    assert kept["layer3.0.conv1"] == 64
    common = {name: n for name, n in kept.items() if name.endswith("conv1") and not name.startswith("layer3")}
    assert len(common) == 7  # with the one before all blocks
    if scope == "layer":
        assert all(n == pruned.plan.layers[name].channels * 0.75 for name, n in common.items())
    assert pruned.plan.overrides == overrides


def test_overrides_that_fit_nothing_are_refused() -> None:
    model, inputs = build("resnet20")
    with pytest.raises(ConfigError, match=r"'layer9' matches no layer that can be pruned\. There are conv1"):
        prune(model, 0.5, overrides={"layer9": 0.1}, example_inputs=inputs)
    with pytest.raises(ConfigError, match=r"ratio 1\.5 of 'layer3' is outside"):
        prune(model, 0.5, overrides={"layer3": 1.5}, example_inputs=inputs)


DATA_DRIVEN = {entry.name for entry in unit_importance}
CRITERIA = list(dict.fromkeys([entry.name for entry in importance] + [entry.name for entry in unit_importance]))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_a_network(criterion: str) -> None:
    model, inputs = build("resnet20")
    torch.manual_seed(1)
    batches = [(torch.randn(3, 1, 32, 32).double(), torch.tensor([1, 2, 3])) for _ in range(2)]
    # No criterion but bn-scale needs a batch norm; all layers of this network but the last have one.
    pruned = prune(
        model, 0.5, importance=criterion, scope="layer", calibration=batches, loss=F.cross_entropy,
        example_inputs=inputs,
    )  # fmt: skip
    assert pruned.plan.importance == criterion
    assert all(layer.kept == layer.channels / 2 for layer in pruned.plan.layers.values())
    needs = getattr(unit_importance[criterion].config(), "needs", None) if criterion in DATA_DRIVEN else None
    if needs in ("gradients", "activations", "readers"):
        with pytest.raises(TaskError, match=f"importance='{criterion}' looks at data and got none"):
            prune(model, 0.5, importance=criterion, example_inputs=inputs)


@pytest.mark.parametrize("criterion", ["taylor", "taylor2", "hessian"])
def test_a_large_filter_that_nothing_reads_goes_first(criterion: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1] = 9.0
        model[2].weight[:, 1] = 0.0
    batches = [(torch.rand(8, 3) + 0.1, torch.arange(8) % 2)]
    pruned = prune(model, 0.25, importance=criterion, calibration=batches, loss=F.cross_entropy)
    assert torch.equal(pruned.get_parameter("0.weight"), model[0].weight[[0, 2, 3]])
    assert not torch.equal(prune(model, 0.25, calibration=batches, loss=F.cross_entropy).get_parameter("0.weight"),
                           model[0].weight[[0, 2, 3]])  # fmt: skip


scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=1, max_size=12).map(torch.tensor), min_size=1, max_size=4
)


@given(groups=scores, ratio=st.floats(0, 0.99), multiple=st.integers(1, 8))
def test_selection_is_exact_and_never_empties_a_group(groups: list, ratio: float, multiple: int) -> None:
    for group, gone in zip(
        groups, select_units(groups, SelectConfig(ratio=ratio, scope="layer", round_to=multiple)), strict=True
    ):
        kept = len(group) - len(gone)
        assert kept == len(group) or (kept % multiple == 0 and kept > 0)
        assert kept >= len(group) - round(ratio * len(group))
        if len(gone):
            mask = torch.ones(len(group), dtype=torch.bool).scatter(0, gone, False)
            assert group[gone].max() <= group[mask].min()


def test_global_scope_takes_the_exact_number_and_prefers_the_weak() -> None:
    groups = [torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0.01, 0.01, 3.0, 3.0])]
    assert [len(g) for g in select_units(groups, SelectConfig(ratio=0.25))] == [0, 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ratio": 1.0}, r"ratio=1.0 is outside \[0, 1\)"),
        ({"ratio": 0.5, "scope": "galaxy"}, "scope='galaxy' is unknown"),
        ({"ratio": 0.5, "round_to": 0}, "round_to=0 is below 1"),
        ({"ratio": 0.5, "importance": "l3"}, "no importance criterion 'l3'. Known: l1"),
        ({"ratio": 0.5, "granularity": "atom"}, "granularity='atom' is not available"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(nn.Linear(2, 2), example_inputs=(torch.ones(2, 2),), **setting)


def test_heads_go_as_a_whole_and_min_keep_is_heeded() -> None:
    model, inputs = networks.build("bert")
    pruned = prune(model, 0.5, granularity="head", scope="layer", example_inputs=inputs)
    assert pruned.get_parameter("layers.0.query.weight").shape == (12, 24)  # two of four heads of six
    assert pruned.get_parameter("layers.0.intermediate.weight").shape == (48, 24)
    assert pruned.plan.layers["layers.0.query"].granularity == "head"
    kept = prune(model, 0.9, granularity="head", scope="layer", min_keep=3, example_inputs=inputs)
    assert kept.get_parameter("layers.0.query.weight").shape == (18, 24)


def test_a_model_without_heads_is_refused() -> None:
    model, inputs = build("seed")
    with pytest.raises(ConfigError, match="no attention heads were found"):
        prune(model, 0.5, granularity="head", example_inputs=inputs)


def test_a_pruned_model_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that stands behind every result: here the zeroed model is made to differ."""
    model, inputs = build("seed")
    monkeypatch.setattr("lighten.graph.rewrite.zero_units_", lambda *_: None)
    with pytest.raises(CaptureError, match="does not compute what the model with the same channels zeroed"):
        prune(model, 0.5, example_inputs=inputs)


class Twice(nn.Module):
    """One layer under two names, of which the graph reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.b = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.norm(self.b(x))) + self.a(x))


def test_a_layer_with_two_names_is_pruned_under_both() -> None:
    pruned = prune(Twice(), 0.5, example_inputs=(torch.randn(3, 4),))
    assert pruned.get_parameter("a.weight").shape == (4, 4)
    assert pruned.get_parameter("a.weight") is pruned.get_parameter("b.weight")


def test_what_is_excluded_is_named_and_so_is_what_it_holds_back() -> None:
    model, inputs = networks.build("resnet20")
    skipped = prune(model, 0.5, example_inputs=inputs, exclude=["layer2.0.conv1", "layer3.1.conv2"]).plan.skipped
    assert skipped["layer2.0.conv1"] == "not pruned: excluded"
    assert skipped["layer3.0.conv2"] == "not pruned: tied to a layer that is excluded"
    assert "layer2.1.conv1" not in skipped


@pytest.mark.parametrize("criterion", ["l2", "obs"])
def test_a_weight_that_is_nan_cannot_be_ranked(criterion: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight[0, 1] = float("nan")
    with pytest.raises(CaptureError, match="weight of layer '2' holds NaN"):
        prune(model, 0.5, importance=criterion, calibration=[torch.ones(2, 3)])


def test_a_quantized_model_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 3)
    with pytest.raises(ConfigError, match="quantized already, to w8a8"):
        prune(lighten.quantize(model, "w8a8", calibration=[x]), 0.5, example_inputs=(x,))
