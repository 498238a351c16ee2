"""Choices, their harm, their cost, and what a point of a family becomes."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lighten.errors import TaskError
from lighten.graph.capture import capture
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.graph.rewrite import zero_units_, zeroed_units
from lighten.prune import prune
from lighten.prune.calibration import input_statistics
from lighten.prune.layers import find_layers
from lighten.prune.refit import fitted_without
from lighten.runtime.roofline import Layer
from lighten.search import choices, cost
from lighten.search.allocate import total_cost
from lighten.search.choices import Ranking, channel_choices, ranking, zeroed_blocks
from lighten.search.config import SearchConfig
from lighten.search.cost import LayerTimes, layer_shapes, shrunk
from lighten.search.realize import Variant, ranked, recovered
from lighten.search.sensitivity import divergence, lasting, measure_harms
from lighten.search.space import Network, _samples, look_at, space, time_terms, weight_terms
from lighten.search.workers import Workers
from lighten.task import as_args
from tests.networks import NETWORKS
from tests.tiny import TinyNet, tiny_task

CONFIG = SearchConfig(round_to=4)


def quiet(share: float, doing: str) -> None:
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def network() -> Network:
    return look_at(Workers(tiny_task()), CONFIG, quiet)


def test_the_harm_of_channels_is_that_of_the_network_with_them_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    captured = capture(TinyNet().eval(), (x,))
    labels = propagate(captured, (x,))
    (first, *_) = channel_choices(captured, labels, find_groups(labels), (0.0, 0.5), 4)
    zeroed = copy.deepcopy(captured)
    zero_units_(zeroed, labels, first.gone[1])
    changes = zeroed_units(captured, labels, first.gone[1])
    harms = measure_harms(captured, {"it": [dict, lambda: changes]}, [x], are_logits=True)["it"]
    expected = divergence([captured(x)], [zeroed(x)], are_logits=True) / len(x)
    assert harms.tolist() == [0.0, pytest.approx(expected, rel=1e-6)]
    assert expected > 0


def test_the_harm_of_channels_is_that_which_is_left_once_their_readers_are_fitted(network: Network) -> None:
    task = tiny_task()
    (batch,) = _samples(task)
    captured = capture(task.model, task.example_inputs)
    labels, layers = propagate(captured, task.example_inputs), find_layers(captured)[0]
    by_obs = (CONFIG.channel_shares, 4, "obs", [batch])
    (first, *_) = channel_choices(captured, labels, find_groups(labels), *by_obs)
    moments = input_statistics(captured, layers, [batch], full=True)
    for option, harm in enumerate(network.harms[first.key][:3]):
        changed = copy.deepcopy(captured)
        changes = fitted_without(captured, labels, first.gone[option], layers, moments)
        changed.load_state_dict({**captured.state_dict(), **changes})
        x = as_args(batch)
        alone = divergence([captured(*x)], [changed(*x)], are_logits=True) / len(x[0])
        assert harm == pytest.approx(alone, rel=1e-5, abs=1e-9)


def test_channels_that_obs_cannot_rank_are_ranked_by_l2_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = NETWORKS["unet"].make().eval().double(), NETWORKS["unet"].inputs()
    labels = propagate(captured := capture(model, inputs), inputs)
    found = ranking(captured, labels, find_groups(labels), "obs")
    assert found.importance == "l2"
    assert "no linear layer, convolution or product that reads the channels of" in found.because
    assert ranking(captured, labels, find_groups(labels), "taylor") == Ranking("taylor")
    task = tiny_task()
    tiny = capture(task.model, task.example_inputs)
    assert ranked(tiny, task.example_inputs, CONFIG) == Ranking("obs")
    monkeypatch.setattr(choices, "MOST_BYTES", 1000)
    assert "obs would need" in ranked(tiny, task.example_inputs, CONFIG).because
    plan = recovered(task, Variant(name="half", ratio=0.5), CONFIG, lambda share: None).plan
    assert plan.importance == "l2"


def test_what_goes_is_what_pruning_takes(network: Network) -> None:
    task = tiny_task()
    choice = next(c for c in network.choices if c.kind == "channels")
    pruned = prune(
        task.model, 0.0, scope="layer", overrides={choice.name: choice.options[1]}, round_to=4,
        example_inputs=task.example_inputs,
    )  # fmt: skip
    layer = pruned.plan.layers[choice.name]
    assert layer.channels is not None
    assert layer.kept == round(layer.channels * (1 - choice.options[1]))


def test_blocks_of_zeros_are_those_of_pruning() -> None:
    task = tiny_task()
    captured = capture(task.model, task.example_inputs)
    layer = next(x for x in find_layers(captured)[0] if x.name == "conv2")
    pruned = prune(
        task.model, 0.0, granularity="block:4x1", scope="layer", overrides={"conv2": 0.7},
        example_inputs=task.example_inputs,
    )  # fmt: skip
    (weight,) = zeroed_blocks(captured, layer, 0.7, "block:4x1").values()
    assert torch.equal(weight, pruned.get_parameter(layer.parameter))


class WithDepthwise(TinyNet):
    """TinyNet behind a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(self.own(x))


def test_depthwise_layers_keep_their_weights_unless_a_plan_says_otherwise() -> None:
    torch.manual_seed(0)
    task = replace(tiny_task(), model=WithDepthwise().eval())
    found = look_at(Workers(task), CONFIG, quiet).choices
    assert not [choice for choice in found if (choice.kind, choice.name) == ("zeros", "own.1")]
    assert [choice for choice in found if (choice.kind, choice.name) == ("zeros", "conv2")]
    for zeros, is_kept in (({}, True), ({"own.1": 0.5}, False)):
        variant = Variant(name="zeros", sparsity=0.5, zeros=zeros, epochs=0)
        model = recovered(task, variant, CONFIG, lambda share: None)
        weights = {layer.name: model.get_parameter(layer.parameter) for layer in find_layers(model)[0]}
        assert bool(weights["own.1"].all()) == is_kept
        assert not weights["conv2"].all()


def test_harms_rise_with_the_share_and_need_data(network: Network) -> None:
    assert {key.split(":")[0] for key in network.harms} == {"channels", "zeros"}
    for harms in network.harms.values():
        assert harms[0] == 0
        assert (np.diff(harms) >= 0).all()
        assert harms[-1] > 0
    captured = capture(TinyNet().eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(TaskError, match="need calibration data"):
        measure_harms(captured, {}, [], are_logits=True)
    with pytest.raises(TaskError, match="batch 0 does not fit"):
        measure_harms(captured, {}, [torch.randn(2, 3, 8, 8)], are_logits=True)


def test_outputs_that_are_no_logits_are_compared_by_their_spread() -> None:
    x = torch.randn(64, 4)
    net = nn.Linear(4, 2)
    captured = capture(net.eval(), (x,))
    nothing = {"weight": torch.zeros(2, 4), "bias": captured(x).detach().mean(0)}
    harms = measure_harms(captured, {"all": [lambda: nothing]}, [x], are_logits=False)
    assert harms["all"][0] == pytest.approx(1.0, rel=1e-5)  # the mean explains none of the spread


# After a concatenation a layer reads several groups, and is put down to the largest of them.
@pytest.mark.parametrize(
    ("name", "within"),
    [("resnet20", 0.01), ("mobilenet-v2", 0.01), ("vit", 0.01), ("llama", 0.01), ("densenet", 0.2), ("unet", 0.2)],
)
def test_the_weights_of_a_point_are_those_that_pruning_leaves(name: str, within: float) -> None:
    """The oracle of the cost terms: bytes of a point against the weights of the network that it becomes."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name].make().double().eval(), NETWORKS[name].inputs()
    labels = propagate(captured := capture(model, inputs), inputs)
    layers = find_layers(captured)[0]
    choices = channel_choices(captured, labels, find_groups(labels), (0.0, 0.5), 1)
    from lighten.search.space import _around

    network = Network(
        layers=tuple(layers),
        shapes=tuple(map(tuple, layer_shapes(captured, layers, inputs, 1))),
        around=tuple(_around(labels, layer, find_groups(labels)) for layer in layers),
        choices=tuple(choices),
        harms={choice.key: np.arange(len(choice.options), dtype=float) for choice in choices},
        macs=1,
    )
    terms = weight_terms(network, "channels", 1.0)
    predicted = total_cost(terms, [len(c.options) - 1 for c in choices])
    pruned = prune(model, 0.5, scope="layer", example_inputs=inputs)
    after = sum(pruned.get_parameter(x.parameter).numel() for x in find_layers(pruned)[0])
    before = sum(captured.get_parameter(x.parameter).numel() for x in layers)
    assert predicted == pytest.approx(after / before, rel=within)


@pytest.mark.parametrize("fixed", [0.5, 1.5])
def test_times_fill_a_table_that_costs_the_whole(
    network: Network, fixed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a law: layers as small as these are timed as noise. fixed: of the whole, what no layer takes, or too much."""
    most = sum(shape.macs for shapes in network.shapes for shape in shapes)

    def by_law(runtime: str, threads: int, wanted: Sequence[Layer], tell: object) -> LayerTimes:
        times = LayerTimes(runtime, threads)
        monkeypatch.setattr(times, "ms", {layer: 2.0 * fixed * layer.macs / most for layer in wanted}.__getitem__)
        return times

    monkeypatch.setattr("lighten.search.space.layer_times", by_law)
    terms = time_terms(network, "channels", "onnxruntime", 2.0, 1, quiet, Workers(tiny_task()))
    made = space(network, "channels", terms, 2.0)
    assert total_cost(terms, [0] * len(made.choices)) == pytest.approx(2.0)
    cheapest = total_cost(terms, [len(c.options) - 1 for c in made.choices])
    assert 2.0 * max(0.0, 1 - fixed) < cheapest < 2.0


def test_layers_are_timed_where_the_target_is(network: Network) -> None:
    terms = time_terms(network, "channels", "onnxruntime", 2.0, 1, quiet, Workers(tiny_task()))
    made = space(network, "channels", terms, 2.0)
    assert total_cost(terms, [0] * len(made.choices)) == pytest.approx(2.0)


def test_times_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(in_channels=3, out_channels=5, name="this test's own")
    first = LayerTimes("onnxruntime", 1)
    first.measure([layer])
    monkeypatch.setattr(cost, "Series", lambda threads: pytest.fail("it was measured again"))
    again = LayerTimes("onnxruntime", 1)
    again.measure([layer])
    assert again.ms(layer) == first.ms(layer) > 0


def test_shrunk_layers_stay_possible() -> None:
    depthwise = Layer(in_channels=8, out_channels=8, groups=8, kernel=(3, 3), size=(4, 4))
    # Its inputs are its outputs, whichever side the choice is known on.
    for inputs, outputs in ((0.5, 0.5), (1.0, 0.5), (0.5, 1.0)):
        assert shrunk(depthwise, inputs, outputs) == replace(depthwise, in_channels=4, out_channels=4, groups=4)
    grouped = shrunk(Layer(in_channels=8, out_channels=16, groups=4), 0.75, 0.5)
    assert grouped.in_channels % grouped.groups == grouped.out_channels % grouped.groups == 0
    assert shrunk(Layer(in_channels=2, out_channels=2), 0.01, 0.01).in_channels == 1


def test_a_point_becomes_the_network_that_it_says(network: Network) -> None:
    task = tiny_task()
    made = space(network, "both", weight_terms(network, "both", 1.0), 1.0)
    point = made.point(0.1)
    assert point.cost <= 0.1
    variant = made.variant(point, in_ms=False, epochs=0)
    model = recovered(task, variant, CONFIG, lambda share: None)
    for name, share in variant.channels.items():
        layer = model.plan.layers[name]
        assert layer.channels is not None
        assert layer.kept == round(layer.channels * (1 - share))
    for name, share in variant.zeros.items():
        assert model.plan.layers[name].sparsity == pytest.approx(share, abs=0.02)
    with pytest.raises(Exception, match="cannot be met"):
        made.point(1e-6)


@given(st.lists(st.tuples(st.floats(0.01, 0.2), st.floats(0, 5)), min_size=1, max_size=6))
def test_lasting_harms_are_convex_and_grow_as_less_is_left(steps: list[tuple[float, float]]) -> None:
    total = 1.1 * sum(step for step, _ in steps)
    shares = np.concatenate([[0.0], np.cumsum([step / max(total, 1) for step, _ in steps])])
    harms = np.concatenate([[0.0], np.cumsum([harm for _, harm in steps])])
    found = lasting(harms, shares.tolist()) * (1 - shares)
    assert (found >= harms * (1 - 1e-12)).all()
    slopes = np.diff(found) / np.diff(shares)
    assert (np.diff(slopes) >= -1e-6 * (1 + slopes[:-1])).all()
    assert lasting(found, shares.tolist()) == pytest.approx(found / (1 - shares))  # what is convex stays
