import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lighten.errors import ConfigError
from lighten.export import export
from lighten.quantize import quantize
from lighten.quantize.qat import fake_quantize, finish, prepare
from lighten.recover.finetune import FineTuneConfig, fine_tune
from lighten.runtime.runner import load
from tests.quantize.networks import build, images


def by_formula(x: Tensor, scale: Tensor, lowest: int, highest: int, factor: float, gradient: Tensor):
    """The source's equations, value by value: gradients of x and of scale."""
    of_x, of_scale = torch.zeros_like(x), 0.0
    for i, value in enumerate(x):
        v = float(value / scale)
        if v < lowest:
            of_scale += float(gradient[i]) * lowest
        elif v > highest:
            of_scale += float(gradient[i]) * highest
        else:
            of_scale += float(gradient[i]) * (round(v) - v)
            of_x[i] = gradient[i]
    return of_x, of_scale * factor


def test_gradients_are_those_of_the_source() -> None:
    torch.manual_seed(0)
    x, scale, gradient = 3 * torch.randn(200), torch.tensor(0.3, requires_grad=True), torch.randn(200)
    x.requires_grad_()
    rounded = fake_quantize(x, scale, -8, 7, n=50)
    assert torch.equal(rounded, (x / 0.3).round().clamp(-8, 7) * 0.3)
    rounded.backward(gradient)
    of_x, of_scale = by_formula(x.detach(), scale.detach(), -8, 7, (50 * 8) ** -0.5, gradient)
    assert torch.equal(x.grad, of_x)
    assert float(scale.grad) == pytest.approx(of_scale, rel=1e-4)


def test_each_channel_learns_its_own_step_whatever_its_sign() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.26]])
    scale = torch.tensor([1.0, -0.25], requires_grad=True)
    rounded = fake_quantize(weight, scale, -2, 2, n=2)
    assert rounded.tolist() == [[1.0, -2.0], [0.5, 0.25]]
    rounded.sum().backward()
    # Row 0: 1 is exact, -3 is beyond the end -2. Row 1: 2 is exact, 0.26 = 1.04 steps; d|s|/ds = -1.
    assert scale.grad.tolist() == pytest.approx([-2 / 2, 0.04 / 2], abs=1e-6)


def test_a_step_of_zero_makes_no_nan() -> None:
    x, scale = torch.tensor([0.0, 1.0], requires_grad=True), torch.zeros((), requires_grad=True)
    fake_quantize(x, scale, 0, 15, n=None).sum().backward()
    assert x.grad.isfinite().all()
    assert scale.grad.isfinite()


SCHEMES = ["w4a4", "w8a8", "w3a4; stem=w8a8; conv1=w8a8; fc=w8a8"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["seed", "inverted-residuals", "dense"])
def test_what_trains_is_what_comes_out(name: str, scheme: str) -> None:
    """Untrained, it is the network that quantize makes with the same settings; only biases are still float."""
    batches = [images(name, 16, 50)]
    prepared = prepare(build(name), scheme, calibration=batches)
    finished, direct = finish(prepared), quantize(build(name), scheme, calibration=batches, method="mse")
    assert finished.state_dict().keys() == direct.state_dict().keys()
    assert all(torch.equal(value, direct.state_dict()[key]) for key, value in finished.state_dict().items())
    assert (finished.plan.scheme, finished.plan.method) == (scheme, "qat")
    for key, codes in finished.state_dict().items():
        if key.endswith(".bias_codes"):
            bias = prepared.get_parameter(key.removesuffix("_codes"))
            bias.data = codes * finished.get_buffer(key.removesuffix("_codes") + "_scale")
    with torch.no_grad():
        assert torch.equal(prepared(batches[0]), finished(batches[0]))


class Rings(nn.Module):
    """Where a point of the plane lies: within one of three rings."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(2, 24), nn.BatchNorm1d(24)
        self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))


def rings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    radius = x.norm(dim=1)
    return x, (radius > 0.8).long() + (radius > 1.5).long()


def accuracy(model: nn.Module) -> float:
    x, y = rings(2000, seed=1)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def trained_rings() -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(*rings(4096, seed=0))
    torch.manual_seed(0)
    return fine_tune(Rings(), data, F.cross_entropy, FineTuneConfig(epochs=12, lr=0.2, weight_decay=0.0)), data


def test_training_wins_back_what_few_bits_cost_and_ships(trained_rings, tmp_path: Path) -> None:
    model, data = trained_rings
    before = copy.deepcopy(model.state_dict())
    calibration, scheme = [data.tensors[0][:512]], "w2a3; a=w4a8"
    rounded = quantize(model, scheme, calibration=calibration, method="mse")
    prepared = prepare(model, scheme, calibration=calibration)
    steps = {n: p.detach().clone() for n, p in prepared.named_parameters() if n.endswith("_step")}
    tuned = fine_tune(prepared, data, F.cross_entropy, FineTuneConfig(epochs=6, lr=0.02, weight_decay=0.0))
    finished = finish(tuned)
    exact, lost, won = accuracy(model), accuracy(rounded), accuracy(finished)
    assert exact > 0.95
    assert lost < exact - 0.08
    assert won - lost > (exact - lost) / 2, "more than half of it"
    assert any(not torch.equal(p, steps[n]) for n, p in tuned.named_parameters() if n in steps)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    x, _ = rings(500, seed=2)
    export(finished, (x[:2],), tmp_path / "artifact")
    assert (load(tmp_path / "artifact", threads=1)(x).argmax(1) == finished(x).argmax(1)).double().mean() >= 0.998


def test_steps_of_the_float_network_and_methods_apply(trained_rings) -> None:
    model, data = trained_rings
    calibration = [data.tensors[0][:512]]
    prepared = [prepare(model, "w3a8", calibration=calibration, **s) for s in ({}, {"steps": "bias-correction"})]
    assert not torch.equal(*(p.get_parameter("b.bias") for p in prepared))
    # Training goes on from the analytic correction: rounded less exact weights, times the mean input.
    seen: list[Tensor] = []
    handle = model.b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.eval()(calibration[0])
    handle.remove()
    weight, step = (prepared[0].get_parameter(f"b.{name}") for name in ("weight", "weight_step"))
    shift = (fake_quantize(weight, step, -3, 3, 1) - weight) @ seen[0].mean(0)
    wanted = prepared[0].get_parameter("b.bias") - shift
    torch.testing.assert_close(prepared[1].get_parameter("b.bias"), wanted, rtol=1e-5, atol=1e-5)
    by_rtn = prepare(model, "w3a8", calibration=calibration, method="rtn")
    assert torch.all(by_rtn.get_parameter("b.weight_step") >= prepared[0].get_parameter("b.weight_step"))


@pytest.mark.parametrize("scheme", ["w4", "w8a8-tensor", "w8a8-dynamic", "w8a8; 0=w8a8-tensor"])
def test_schemes_that_do_not_train_are_refused(scheme: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be trained\. Train w<bits>a<bits>"):
        prepare(nn.Sequential(nn.Linear(2, 2)), scheme, calibration=[torch.ones(1, 2)])


def test_only_what_was_prepared_can_be_finished() -> None:
    quantized = quantize(nn.Linear(2, 2), "w8a8", calibration=[torch.ones(1, 2)])
    for model in (nn.Linear(2, 2), quantized):
        with pytest.raises(ConfigError, match="holds nothing that was trained to be rounded"):
            finish(model)
    prepared = prepare(nn.Linear(2, 2), "w8a8", calibration=[torch.ones(1, 2)])
    with pytest.raises(ConfigError, match="quantized already"):
        prepare(prepared, "w8a8", calibration=[torch.ones(1, 2)])


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def test_factors_of_products_keep_their_signed_codes() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(32, 6, 16)
    made = finish(prepare(model, "w8a8", calibration=[x], method="rtn"))
    kinds = [
        [value.dtype for name, value in m.named_buffers() if name.endswith("_zero_point") and "qkv" not in name]
        for m in (made, quantize(model, "w8a8", calibration=[x]))
    ]
    # The input and the shares are bytes; queries, keys and values are not.
    assert sorted(map(str, kinds[0])) == ["torch.int8"] * 3 + ["torch.uint8"] * 2
    assert sorted(map(str, kinds[1])) == sorted(map(str, kinds[0]))
