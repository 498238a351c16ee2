"""Layer by layer: what the moments are made of, that later layers see rounded ones, and that memory is given back."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.moments import AIM_DAMPING, MomentAccumulator, Moments, aim, times
from lighten.quantize.weights import StoredWeight, find_weights


def record(model: nn.Module, batches: list, change: float = 0.0) -> dict[str, Moments | None]:
    """The moments of every weight, which comes back with change added to it."""
    captured = capture(model, (batches[0],) if isinstance(batches[0], Tensor) else batches[0])
    seen: dict[str, Moments | None] = {}

    def round_weight(weight: StoredWeight, moments: Moments | None) -> Tensor:
        seen[weight.layer] = moments
        return captured.get_parameter(str(weight.parameter.target)).detach() + change

    run_layer_by_layer(captured, find_weights(captured)[0], batches, round_weight)
    return seen


def test_the_hessian_is_that_of_all_inputs_by_hand() -> None:
    batches = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.0, 1.0]])]
    (moments,) = record(nn.Linear(2, 3), batches).values()
    assert torch.equal(moments.hessian, 2 / 3 * torch.tensor([[[10.0, -1.0], [-1.0, 6.0]]]))
    torch.testing.assert_close(moments.mean_abs, torch.tensor([[4.0, 4.0]]) / 3)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (2, 4, 8, 7)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "valid": (nn.Conv2d(4, 6, 2, padding="valid"), (2, 4, 5, 5)),
    "3d": (nn.Conv3d(4, 6, (3, 2, 2), (2, 1, 2), (1, 0, 1), (2, 1, 1), groups=2), (2, 4, 7, 4, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_change_of_a_convolutions_weight_changes_its_output_by_what_the_moments_say(name: str) -> None:
    convolution, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    x, change = torch.randn(shape), torch.randn_like(convolution.weight)
    (moments,) = record(convolution, [x]).values()
    before = convolution(x)
    changed = nn.utils.parametrize.torch.func.functional_call(
        convolution, {"weight": convolution.weight + change, "bias": convolution.bias}, (x,)
    )
    wanted = (changed - before).square().movedim(1, 0).flatten(1).mean(1)
    assert moments is not None
    rows = change.flatten(1)
    found = (times(rows, moments.hessian) * rows).sum(1) / 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_later_layers_see_what_rounded_ones_make() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(5, 3)
    moments = record(model, [x], change=1.0)["1"]
    seen = nn.functional.linear(x, model[0].weight + 1, model[0].bias).detach()
    torch.testing.assert_close(moments.hessian[0], 2 / 5 * seen.T @ seen)


class Twice(nn.Module):
    """A residual around a convolution, so that what was given and what rounding made of it meet in one addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, 6), nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.conv(x).relu())


def test_drift_is_how_far_inputs_are_from_those_of_the_network_as_given() -> None:
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(5, 4, 6)
    seen = record(model, [x[:2], x[2:]], change=0.1)
    assert seen["first"].drift is None  # nothing was rounded before
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (other.first, other.conv, other.last):
            layer.weight += 0.1
        given, now = (m.first(x) + m.conv(m.first(x)).relu() for m in (model, other))
    rows, change = now.flatten(0, 1), (given - now).flatten(0, 1)
    torch.testing.assert_close(seen["last"].drift[0], 2 / len(rows) * change.T @ rows)
    assert seen["conv"].drift.shape[0] == 2  # one for each group


def test_the_aim_is_the_ridge_regression_on_samples() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 6), torch.randn(3, 6)
    given = x + 0.3 * torch.randn(50, 6) + 0.2 * x.roll(1, 1)
    accumulator = MomentAccumulator()
    accumulator.add(x[None], given[None])
    moments = accumulator.moments()
    damping = AIM_DAMPING * x.square().sum(0).mean()
    # [X; √λ I] W'ᵀ is to be [X̄ Wᵀ; √λ Wᵀ].
    left = torch.cat([x, damping.sqrt() * torch.eye(6)])
    right = torch.cat([given @ weight.T, damping.sqrt() * weight.T])
    wanted = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(aim(weight, moments), wanted, rtol=1e-4, atol=1e-5)
    weight[:, 2] = 0
    assert torch.all(aim(weight, moments)[:, 2] == 0)  # pruned
    assert aim(weight, replace(moments, drift=None)) is weight
    nothing = replace(moments, hessian=torch.zeros(1, 6, 6), drift=torch.zeros(1, 6, 6))
    assert torch.equal(aim(weight, nothing), weight)


def test_a_deep_network_ends_nearer_to_itself_for_aiming_at_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = (layer for _ in range(6) for layer in (nn.Linear(24, 24), nn.Tanh()))
    model, x = nn.Sequential(*layers), torch.randn(2000, 24) @ torch.randn(24, 24) / 5
    far = {}
    for aims in (True, False):
        if not aims:
            monkeypatch.setattr("lighten.quantize.weight_only.aim", lambda weight, moments: weight)
        quantized = quantize(model, "w3-g8", method="gptq", calibration=[x[:1000]])
        far[aims] = float((quantized(x[1000:]) - model(x[1000:])).detach().square().mean())
    assert far[True] < far[False]


def test_what_no_later_node_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    parameters = 12  # they are there once, whatever holds them

    def watch(self: nn.Module, *args):
        nonlocal most
        most = max(most, len(self.env) - sum(n.op == "get_attr" for n in self.env))
        return original(self, *args)

    from lighten.quantize import layerwise

    original = layerwise.Run.step
    monkeypatch.setattr(layerwise.Run, "step", watch)
    record(model, [torch.ones(1, 2)])
    assert parameters > most == 1


def test_methods_that_look_at_inputs_need_them() -> None:
    with pytest.raises(TaskError, match="gptq looks at the inputs of layers, and got none"):
        quantize(nn.Linear(2, 2), "w4", method="gptq", example_inputs=(torch.ones(1, 2),))


@pytest.mark.parametrize("method", ["hqq", "adaround", "signround", "standardized"])
def test_methods_for_integers_refuse_other_formats(method: str) -> None:
    with pytest.raises(ConfigError, match=f"{method} rounds to evenly spaced codes, which nf4 has not"):
        quantize(nn.Linear(2, 2), "nf4", method=method, calibration=[torch.ones(1, 2)])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.ones(1, 2), torch.ones(1, 3)], "Calibration batch 1 does not fit the model"),
        ([torch.ones(1, 2), (torch.ones(1, 2), torch.ones(1))], "it has 2 inputs, and the model takes 1"),
        ([torch.full((1, 2), torch.nan)], "The input of layer '' is NaN or infinite during calibration"),
    ],
)
def test_calibration_that_is_wrong_is_refused(batches: list, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        quantize(nn.Linear(2, 2), "w4", method="gptq", calibration=batches)


def test_layers_without_inputs_to_watch_are_rounded_to_nearest_and_say_so() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.linear(self.embedding(ids))

    plan = quantize(Mixed(), "w4", method="gptq", calibration=[torch.arange(9)[None]]).plan
    assert {name: layer.method for name, layer in plan.layers.items()} == {"embedding": "rtn", "linear": "gptq"}
    assert plan.method == "gptq"
