import copy

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.prune import prune
from lighten.prune.masks import masks
from lighten.prune.methods.magnitude import MagnitudeConfig
from lighten.quantize import quantize
from tests.graph.networks import NETWORKS, build

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8))


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 0.9999])
def test_exactly_the_asked_share_goes(ratio: float, scope: str) -> None:
    pruned = prune(network(), ratio, granularity="element", scope=scope, example_inputs=(X,))
    sizes = [mask.numel() for mask in masks(pruned).values()]
    gone = [int((pruned.get_parameter(name) == 0).sum()) for name in masks(pruned)]
    if scope == "layer":
        assert gone == [min(round(ratio * size), size - 1) for size in sizes]
    assert sum(gone) == min(round(ratio * sum(sizes)), sum(sizes) - len(sizes))
    assert {name: plan.sparsity for name, plan in pruned.plan.layers.items()} == pytest.approx(
        {name: zeros / size for name, zeros, size in zip(["0", "4"], gone, sizes, strict=True)}
    )


def test_a_layer_may_have_a_ratio_of_its_own() -> None:
    pruned = prune(network(), 0.9, granularity="element", overrides={"0": 0.25}, example_inputs=(X,))
    assert {name: plan.sparsity for name, plan in pruned.plan.layers.items()} == pytest.approx(
        {"0": 0.25, "4": round(0.9 * 2048) / 2048}
    )
    with pytest.raises(ConfigError, match="has one ratio for all layers"):
        prune(network(), 0.5, granularity="2:4", overrides={"0": 0.25}, example_inputs=(X,))


def test_the_smallest_weights_go_and_the_model_is_not_modified() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, 0.75, granularity="element", importance="l1", scope="layer", example_inputs=(X,))
    weight = model[4].weight.detach()
    kept = pruned.get_parameter("4.weight") != 0
    assert weight.abs()[kept].min() >= weight.abs()[~kept].max()
    assert torch.equal(pruned.get_parameter("4.weight")[kept], weight[kept])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_n_of_every_m_input_channels_stay(name: str, keep: int, of: int) -> None:
    pruned = prune(network(), 1 - keep / of, granularity=name, example_inputs=(X,))
    for parameter in masks(pruned):
        runs = (pruned.get_parameter(parameter) != 0).movedim(1, -1).unflatten(-1, (-1, of))
        assert (runs.sum(-1) == keep).all()


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (2, 3), (1, 8)])
def test_blocks_go_as_one(rows: int, columns: int) -> None:
    pruned = prune(network(), 0.5, granularity=f"block:{rows}x{columns}", exclude=["4"], example_inputs=(X,))
    weight = pruned.get_parameter("0.weight").flatten(1)
    blocks = (weight != 0).reshape(16 // rows, rows, 72 // columns, columns).float().mean((1, 3))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert blocks.mean() == 0.5


def test_what_does_not_fit_is_told_with_what_would() -> None:
    pruned = prune(network(), 0.5, granularity="block:16x1", example_inputs=(X,))
    assert pruned.plan.skipped == {
        "4": "not pruned: block:16x1 needs a multiple of 16 outputs, and it has 8; 8 would fit"
    }
    assert list(masks(pruned)) == ["0.weight"]


def test_exclude_is_heeded() -> None:
    pruned = prune(network(), 0.5, granularity="element", exclude=["4"], example_inputs=(X,))
    assert pruned.get_parameter("4.weight").count_nonzero() == 8 * 256
    assert pruned.plan.skipped == {"4": "not pruned: excluded"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_computes_with_its_zeros_and_trains(name: str) -> None:
    model, inputs = build(name)
    pruned = prune(model, 0.5, granularity="element", scope="layer", example_inputs=inputs)
    zeroed = copy.deepcopy(model)
    for parameter, mask in masks(pruned).items():
        zeroed.get_parameter(parameter).data.masked_fill_(~mask, 0)
    torch.testing.assert_close(pruned(*inputs), zeroed(*inputs), rtol=1e-10, atol=1e-10)
    pruned.train()
    pruned(*torch.utils._pytree.tree_map(lambda x: torch.cat([x, x]), inputs)).square().sum().backward()
    listed = {*pruned.plan.layers, *pruned.plan.skipped}
    assert listed >= {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))}


def test_pruning_again_keeps_what_is_pruned() -> None:
    first = prune(network(), 0.5, granularity="element", importance="random", example_inputs=(X,))
    second = prune(first, 0.8, granularity="element", importance="random", example_inputs=(X,))
    for name, mask in masks(second).items():
        assert not (mask & ~masks(first)[name]).any()
    assert sum(int(m.sum()) for m in masks(second).values()) == round(0.2 * (8 * 16 * 9 + 2048))


def test_a_config_stands_for_its_method() -> None:
    by_order = {
        order: masks(
            prune(
                network(),
                0.5,
                granularity="block:4x1",
                importance=MagnitudeConfig(order=order),
                example_inputs=(X,),
            )
        )["0.weight"]
        for order in (1, 2)
    }
    assert not torch.equal(by_order[1], by_order[2])


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.table = nn.Embedding(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x + self.table.weight[0], self.weight.tanh())


def test_a_model_without_a_layer_that_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"No layer of the model can be pruned .* its weight is computed"):
        prune(Computed(), 0.5, granularity="element", example_inputs=(torch.ones(2, 8),))
    with pytest.raises(
        ConfigError, match="'0': not pruned: 2:4 needs a multiple of 4 inputs, and it has 6; 3 would fit"
    ):
        prune(nn.Sequential(nn.Linear(6, 2)), 0.5, granularity="2:4", example_inputs=(torch.ones(2, 6),))


def test_quantized_and_integer_weights_are_refused() -> None:
    quantized = quantize(network(), "w8a8", calibration=[X])
    with pytest.raises(ConfigError, match="quantized already, to w8a8"):
        prune(quantized, 0.5, granularity="element", example_inputs=(X,))
    integer = nn.Linear(4, 4, bias=False)
    integer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ConfigError, match=r"is torch\.int32. Only floating-point"):
        prune(integer, 0.5, granularity="element", example_inputs=(torch.ones(2, 4, dtype=torch.int32),))


def test_nan_weights_are_refused_by_name() -> None:
    model = network()
    model[4].weight.data[0, 0] = torch.nan
    with pytest.raises(CaptureError, match="weight of layer '4' holds NaN"):
        prune(model, 0.5, granularity="element", example_inputs=(X,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, r"ratio=1.0 is outside \[0, 1\)"),
        ({"ratio": -0.1}, r"ratio=-0.1 is outside \[0, 1\)"),
        ({"ratio": float("nan")}, "ratio=nan is outside"),
        ({"ratio": 0.9, "granularity": "2:4"}, "the pattern itself prunes 0.5"),
        ({"granularity": "elements"}, "Available: channel, element, n:m"),
        ({"scope": "galaxy"}, "scope='galaxy' is unknown. Use one of layer, global, erk"),
        ({"importance": "magnitud"}, "Did you mean 'magnitude'"),
        ({"round_to": 8}, "round_to=8 is for channels"),
        ({"example_inputs": None}, "needs example_inputs"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    given = {"ratio": 0.5, "granularity": "element", "example_inputs": (X,), **settings}
    with pytest.raises(ConfigError, match=message):
        prune(network(), given.pop("ratio"), **given)


def test_a_bare_tensor_is_not_a_list_of_batches() -> None:
    with pytest.raises(TaskError, match="must be a list of batches"):
        prune(network(), 0.5, granularity="element", calibration=X)
