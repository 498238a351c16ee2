import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import TaskError
from lighten.graph.capture import capture
from lighten.prune import prune
from lighten.prune.calibration import input_statistics, paired_moments
from lighten.prune.gradients import mean_gradients
from lighten.prune.layers import find_layers
from lighten.prune.masks import masks

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "padded, strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (3, 4), padding="same"), (4, 6, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (4, 6, 7)),
    "1d": (nn.Conv1d(4, 6, 3, padding=2, stride=2), (4, 11)),
    "3d": (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 5, 6)),
    "linear": (nn.Linear(5, 3), (7, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_hessian_predicts_the_change_of_the_output(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    layer = copy.deepcopy(layer)
    make = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, *shape, generator=make) for n in (3, 2)]
    captured = capture(nn.Sequential(layer), (batches[0],))
    found, _ = find_layers(captured)
    moment = input_statistics(captured, found, batches, full=True)["0"]
    change = torch.randn(layer.weight.shape, generator=make)
    with torch.no_grad():
        before = [layer(x) for x in batches]
        layer.weight += change
        moved = [
            (layer(x) - b).movedim(-1 if name == "linear" else 1, 0).flatten(1)
            for x, b in zip(batches, before, strict=True)
        ]
    expected = torch.cat(moved, 1).square().sum() / torch.cat(moved, 1).shape[1]
    rows = change.flatten(1).double().chunk(len(moment))
    predicted = sum(((r @ m) * r).sum() for r, m in zip(rows, moment, strict=True))
    torch.testing.assert_close(predicted.float(), expected, rtol=1e-4, atol=1e-4)
    square = input_statistics(captured, found, batches, full=False)["0"]
    torch.testing.assert_close(square, moment.diagonal(dim1=1, dim2=2), rtol=1e-5, atol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(9, 3, 6, 6)
    captured = capture(nn.Sequential(nn.Conv2d(3, 4, 3)), (x,))
    layers, _ = find_layers(captured)
    whole = input_statistics(captured, layers, [x], full=True)["0"]
    monkeypatch.setattr("lighten.prune.calibration.CHUNK_ELEMENTS", 1)
    # The products are float32, whatever holds the sums.
    torch.testing.assert_close(input_statistics(captured, layers, [x], full=True)["0"].float(), whole.float())


def test_paired_moments_of_equal_networks_are_the_moment() -> None:
    x = torch.randn(5, 6)
    captured = capture(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (x,))
    layers, _ = find_layers(captured)
    own, cross = paired_moments(captured, capture(captured, ()), layers[1], [x])
    torch.testing.assert_close(own, cross)
    torch.testing.assert_close(own, input_statistics(captured, layers, [x], full=True)["2"])


def test_the_fisher_is_the_mean_square_of_the_samples_gradients() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 4)), torch.randn(6, 3), torch.arange(6) % 4
    captured = capture(model, (x,))
    mean, square = mean_gradients(captured, ["0.weight"], [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy)["0.weight"]
    single = []
    for i in range(6):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        single.append(model[0].weight.grad.clone())
    torch.testing.assert_close(mean, torch.stack(single).mean(0))
    torch.testing.assert_close(square, torch.stack(single).square().mean(0))


def test_without_a_loss_the_outputs_themselves_count() -> None:
    # For y = W x the diagonal of Jᵀ J is x² for every weight, whatever the signs of the probe.
    x = torch.randn(6, 3)
    captured = capture(nn.Sequential(nn.Linear(3, 4)), (x,))
    _, square = mean_gradients(captured, ["0.weight"], [x], None)["0.weight"]
    torch.testing.assert_close(square, x.square().mean(0).expand(4, 3))


def loss(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "obs", "obd", "hessian"])
def test_every_method_that_looks_at_data_works_from_the_verb(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    x, y = torch.randn(16, 4, 8, 8), torch.arange(16) % 3
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, 0.5, granularity="element", importance=name, calibration=[(x, y)], loss=loss)
    again = prune(model, 0.5, granularity="element", importance=name, calibration=iter([(x, y)]), loss=loss)
    total = sum(mask.numel() for mask in masks(pruned).values())
    assert sum(int((pruned.get_parameter(n) == 0).sum()) for n in masks(pruned)) == round(total / 2)
    assert all(torch.equal(pruned.state_dict()[key], value) for key, value in again.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pruned.plan.importance == name


@pytest.mark.parametrize("name", ["sparsegpt", "obs"])
def test_fitting_the_rest_beats_leaving_it(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(400, 16) @ torch.randn(16, 16)
    wanted = model(x)

    def distance(importance: object) -> float:
        pruned = prune(model, 0.6, granularity="element", scope="layer", importance=importance, calibration=[x[:200]])
        return float((pruned(x[200:]) - wanted[200:]).detach().square().mean())

    from lighten.prune.methods.layer_data import weight_importance

    config = weight_importance[name].config
    assert distance(config()) < distance(config(sequential=False)) < distance("magnitude")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "looks at data and got none"),
        ([], "The calibration data is empty"),
        ([torch.ones(2, 5)], "Calibration batch 0 does not fit the model"),
        ([torch.full((2, 4), torch.nan)], "NaN or infinite during calibration"),
    ],
)
def test_bad_calibration_data_is_refused(calibration: list | None, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        prune(
            nn.Sequential(nn.Linear(4, 4)),
            0.5,
            granularity="element",
            importance="wanda",
            calibration=calibration,
            example_inputs=(torch.ones(2, 4),),
        )


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "obs"])
def test_blocks_that_span_the_groups_of_a_convolution(name: str) -> None:
    """A depthwise layer: four outputs to a block, each with inputs of its own."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), torch.randn(16, 2, 6, 6)
    pruned = prune(model, 0.5, granularity="block:4x1", importance=name, scope="layer", calibration=[x])
    own = next(p for p in pruned.parameters() if p.shape == (8, 1, 3, 3))
    gone = (own == 0).view(2, 4, 9)
    assert torch.equal(gone.all(1), gone.any(1))
    assert gone.sum() == 36  # half of the 18 blocks
