"""Layer by layer: what the moments are made of, that later layers see rounded ones, and that memory is given back."""

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.moments import Moments
from lighten.quantize.weights import StoredWeight, find_weights


def record(model: nn.Module, batches: list, change: float = 0.0) -> dict[str, list[Moments] | None]:
    """The moments of every weight, which comes back with change added to it."""
    captured = capture(model, (batches[0],) if isinstance(batches[0], Tensor) else batches[0])
    seen: dict[str, list[Moments] | None] = {}

    def round_weight(weight: StoredWeight, moments: list[Moments] | None) -> Tensor:
        seen[weight.layer] = moments
        return captured.get_parameter(str(weight.parameter.target)).detach() + change

    run_layer_by_layer(captured, find_weights(captured)[0], batches, round_weight)
    return seen


def test_the_hessian_is_that_of_all_inputs_by_hand() -> None:
    batches = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.0, 1.0]])]
    ((moments,),) = record(nn.Linear(2, 3), batches).values()
    assert torch.equal(moments.hessian, 2 / 3 * torch.tensor([[10.0, -1.0], [-1.0, 6.0]]))
    torch.testing.assert_close(moments.mean_abs, torch.tensor([4.0, 4.0]) / 3)


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
    found = [
        ((rows @ m.hessian) * rows).sum(1) / 2
        for rows, m in zip(change.flatten(1).chunk(len(moments)), moments, strict=True)
    ]
    torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-4, atol=1e-5)


def test_later_layers_see_what_rounded_ones_make() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(5, 3)
    (moments,) = record(model, [x], change=1.0)["1"]
    seen = nn.functional.linear(x, model[0].weight + 1, model[0].bias).detach()
    torch.testing.assert_close(moments.hessian, 2 / 5 * seen.T @ seen)


def test_what_no_later_node_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    parameters = 12  # they are there once, whatever holds them

    def watch(self: nn.Module, *args):
        nonlocal most
        most = max(most, len(self.env) - sum(n.op == "get_attr" for n in self.env))
        return original(self, *args)

    from lighten.quantize import layerwise

    original = layerwise._Run.step
    monkeypatch.setattr(layerwise._Run, "step", watch)
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
