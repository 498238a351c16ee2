import copy

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.plan import Plan
from lighten.prune import prune
from lighten.prune.calibration import input_statistics
from lighten.prune.gradual import prune_gradually, recipe_of
from lighten.prune.history import removals
from lighten.prune.layers import find_layers
from lighten.prune.refit import fitted_without, refit_
from tests.networks import build
from tests.tiny import tiny_task

SETTINGS = {"scope": "layer", "importance": "l2"}


def inputs_of(name: str, n: int) -> tuple[nn.Module, tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    model, inputs = build(name)
    make = torch.Generator().manual_seed(0)
    batches = [
        tuple(torch.randn(n, *x.shape[1:], generator=make).to(x) if x.is_floating_point() else x for x in inputs)
        for _ in range(2)
    ]
    return model.eval(), inputs, batches


def distance(model: nn.Module, other: nn.Module, batches: list[tuple[Tensor, ...]]) -> float:
    with torch.no_grad():
        return sum(float((model(*b) - other(*b)).square().sum()) for b in batches)


def test_what_is_left_makes_up_for_channels_that_say_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)
    )
    with torch.no_grad():  # the second half of the channels are multiples of the first, below zero where that is
        net[0].weight[4:] = 0.5 * net[0].weight[:4]
        net[0].bias[4:] = 0.5 * net[0].bias[:4]
    batches = [(torch.randn(16, 3, 8, 8),)]
    plain = prune(net, 0.5, example_inputs=batches[0], overrides={"2": 0.0}, **SETTINGS)
    refitted = prune(
        net, 0.5, example_inputs=batches[0], overrides={"2": 0.0}, calibration=batches, refit=True, **SETTINGS
    )
    assert refitted.get_parameter("0.weight").shape[0] == 4
    scale = float(net(*batches[0]).detach().square().sum())
    assert distance(net, plain, batches) > 1e-2 * scale
    assert distance(net, refitted, batches) < 1e-3 * scale  # damping pulls by a hundredth, squared


@pytest.mark.parametrize("name", ["resnet20", "vit", "resnext", "mobilenet-v2", "llama"])
def test_outputs_come_nearer_and_shapes_stay(name: str) -> None:
    model, inputs, batches = inputs_of(name, 8)
    plain = prune(model, 0.5, example_inputs=inputs, **SETTINGS)
    refitted = prune(model, 0.5, example_inputs=inputs, calibration=batches, refit=True, **SETTINGS)
    assert [p.shape for p in refitted.parameters()] == [p.shape for p in plain.parameters()]
    assert distance(model, refitted, batches) < distance(model, plain, batches)
    assert refitted.plan.refit
    assert not plain.plan.refit


def test_a_layer_is_the_least_squares_solution() -> None:
    """Against a solve on the unfolded inputs themselves."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    x = torch.randn(400, 6, dtype=torch.float64)
    dense = capture(net, (x,))
    pruned = prune(net, 0.4, example_inputs=(x,), **SETTINGS)
    kept = removals(pruned)[-1].kept["2.weight", 1]
    assert refit_(dense, pruned, [x], damping=1e-12) == {}
    hidden = torch.tanh(net[0](x)).detach()
    wanted = torch.linalg.lstsq(hidden[:, kept], hidden @ net[2].weight.detach().T).solution.T
    torch.testing.assert_close(pruned.get_parameter("2.weight").detach(), wanted, rtol=1e-4, atol=1e-5)  # in float32


def test_it_is_part_of_the_plan_and_modifies_nothing() -> None:
    task = tiny_task()
    before = copy.deepcopy(task.model.state_dict())
    pruned = prune_gradually(task, 0.5, refit=True)
    plan = Plan.from_dict(pruned.plan.to_dict())
    assert plan.refit
    again = prune_gradually(task, **recipe_of(plan))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pruned.parameters(), strict=True))
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_layers_that_are_no_linear_layers_are_named() -> None:
    model, inputs, batches = inputs_of("gpt2", 4)  # its weights are read by addmm
    plan = prune(model, 0.5, example_inputs=inputs, calibration=batches, refit=True, **SETTINGS).plan
    left = {layer for layer, why in plan.skipped.items() if why.startswith("not refitted: its weight is read by")}
    assert left >= {f"h.{block}.c_fc" for block in (0, 1)}


def test_what_it_needs_is_said() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(4, 4)
    with pytest.raises(ConfigError, match="without calibration"):
        prune(net, 0.5, example_inputs=(x,), refit=True)
    with pytest.raises(ConfigError, match="'element', with calibration"):
        prune(net, 0.5, calibration=[x], granularity="element", refit=True)


def test_the_forecast_is_what_refitting_makes_of_the_first_readers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    batches = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    captured = capture(net.eval(), (batches[0],))
    labels, layers = propagate(captured, (batches[0],)), find_layers(captured)[0]
    pruned = prune(
        net, 0.5, example_inputs=(batches[0],), overrides={"2": 0.0}, calibration=batches, refit=True, **SETTINGS
    )
    (kept,) = (
        indices for (name, axis), indices in removals(pruned)[-1].kept.items() if (name, axis) == ("0.weight", 0)
    )
    gone = torch.ones(8, dtype=torch.bool).index_fill(0, kept, False)
    units = next(g for g in find_groups(labels) if g.name == "0").units[gone]
    moments = input_statistics(captured, layers, batches, full=True)
    changed = fitted_without(captured, labels, units, layers, moments)
    assert set(changed) == {"0.weight", "0.bias", "2.weight"}
    assert not changed["0.weight"][gone].any()
    assert not changed["2.weight"][:, gone].any()
    fitted = pruned.get_parameter("2.weight").detach()
    # Both are sums of products in float64 in another order, and rounded to float32.
    torch.testing.assert_close(changed["2.weight"][:, kept], fitted, rtol=1e-5, atol=1e-6 * float(fitted.abs().max()))
    assert not torch.equal(changed["2.weight"][:, kept], net[2].weight.detach()[:, kept])
