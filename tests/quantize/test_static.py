import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.plan import LayerPlan
from lighten.prune import prune
from lighten.quantize import quantize
from lighten.quantize.scheme import Scheme
from tests.graph.networks import TwoInputs


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.norm(self.conv(x))))
        return self.head(x.mean((2, 3)))


def small() -> tuple[Small, list[Tensor]]:
    torch.manual_seed(0)
    return Small().eval(), [torch.randn(8, 2, 6, 6) for _ in range(3)]


def codes(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if name.endswith("_codes")}


def test_the_plan_says_what_was_done_and_what_was_not() -> None:
    model, batches = small()
    plan = quantize(model, "w8a8", calibration=batches, observer="minmax", weight_bits=7, exclude=["head"]).plan
    assert plan.layers == {"conv": LayerPlan(scheme="w8a8", method="rtn")}
    assert plan.skipped == {
        "up": "not quantized: aten.conv_transpose2d.input has no integer kernel",
        "head": "not quantized: excluded",
    }
    assert (plan.scheme, plan.observer, plan.weight_bits) == ("w8a8", "minmax", 7)


def test_the_model_is_not_modified() -> None:
    model, batches = small()
    model.norm.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    quantize(model, "w8a8", calibration=batches)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [m.training for m in model.modules()] == modes


def test_a_layer_by_hand() -> None:
    """One input of 0..255 in steps of 1, weights that are multiples of 1/127, a bias in steps of their product."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 64 / 127], [-0.5, 0.004]]))
        model.bias.copy_(torch.tensor([10.0, 0.001]))
    quantized = quantize(model, "w8a8", calibration=[torch.tensor([[0.0, 255.0]])], observer="minmax")
    assert quantized.get_buffer("weight_codes").tolist() == [[127, 64], [-127, 1]]
    torch.testing.assert_close(quantized.get_buffer("weight_scale"), torch.tensor([1 / 127, 0.5 / 127]))
    assert quantized.get_buffer("bias_codes").tolist() == [1270, 0]
    torch.testing.assert_close(
        quantized(torch.tensor([[3.4, 300.0]])), torch.tensor([[3 + 255 * 64 / 127 + 10, -1.5 + 255 * 0.5 / 127]])
    )


@pytest.mark.parametrize(
    "setting", [{"observer": "minmax"}, {"weight_bits": 4}, {"exclude": ["conv"]}, {"exclude": ["h*"]}]
)
def test_every_setting_is_heeded(setting: dict) -> None:
    model, batches = small()
    many = torch.randn(2000, 2, 6, 6)
    many[0, 0, 0, :2] = torch.tensor([9.0, -9.0])  # far enough out for the MSE observer to clip them
    plain, changed = (quantize(model, "w8a8", calibration=[many], **s) for s in ({}, setting))
    assert not torch.equal(plain(batches[1]), changed(batches[1]))


def test_every_batch_counts() -> None:
    model, batches = small()
    batches[-1] = batches[-1] * 3
    first, all_ = (quantize(model, "w8a8", calibration=b) for b in (batches[:1], batches))
    assert all_.get_buffer("x_scale") > 2 * first.get_buffer("x_scale")


def test_excluding_everything_leaves_the_float_model() -> None:
    model, batches = small()
    untouched = quantize(model, "w8a8", calibration=batches, exclude=["*"])
    torch.testing.assert_close(untouched(batches[0]), model(batches[0]), rtol=1e-5, atol=1e-6)  # folding rounds once
    assert not codes(untouched)
    assert not untouched.plan.layers


def test_calibration_may_be_any_iterable_and_is_read_once() -> None:
    model, batches = small()
    read: list[int] = []

    def reading():
        for i, batch in enumerate(batches):
            read.append(i)
            yield batch

    streamed, listed = (quantize(model, "w8a8", calibration=c) for c in (reading(), batches))
    assert read == [0, 1, 2]
    assert torch.equal(streamed(batches[0]), listed(batches[0]))


def test_state_dict_round_trips_through_safetensors(tmp_path: Path) -> None:
    model, batches = small()
    quantized = quantize(model, "w8a8", calibration=batches)
    save_file(quantized.state_dict(), tmp_path / "model.safetensors")
    other = quantize(model, "w8a8", calibration=[batches[0] / 2])
    assert not torch.equal(other(batches[1]), quantized(batches[1]))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(batches[1]), quantized(batches[1]))
    assert {name: v.dtype for name, v in codes(other).items()} == {
        "conv.weight_codes": torch.int8,
        "conv.bias_codes": torch.int32,
        "head.weight_codes": torch.int8,
        "head.bias_codes": torch.int32,
    }


def test_a_copy_computes_the_same_and_keeps_the_plan() -> None:
    model, batches = small()
    quantized = quantize(model, "w8a8", calibration=batches)
    copied = copy.deepcopy(quantized)
    assert torch.equal(copied(batches[0]), quantized(batches[0]))
    assert copied.plan == quantized.plan


def test_a_pruned_module_is_quantized_and_remembers_both() -> None:
    model, batches = small()
    pruned = prune(model, 0.5, scope="layer", example_inputs=(batches[0],))
    quantized = quantize(pruned, "w8a8", calibration=batches)
    layer = quantized.plan.layers["conv"]
    assert (layer.channels, layer.kept, layer.scheme) == (4, 2, "w8a8")
    assert quantized.get_buffer("conv.weight_codes").shape == (2, 2, 3, 3)
    exact = pruned.eval()(batches[1])
    # Two of three layers at 8 bits: 40 dB each is 0.014 of the spread; twice that leaves room for clipping.
    assert (quantized(batches[1]) - exact).square().mean().sqrt() < 0.03 * exact.std()


def test_weights_of_zero_stay_zero_with_and_without_bias() -> None:
    for bias in (True, False):
        model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=bias), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=bias))
        with torch.no_grad():
            model[0].weight[1] = 0
            model[2].weight.zero_()
        x = torch.randn(4, 2, 5, 5)
        quantized = quantize(model, "w8a8", calibration=[x])
        assert quantized.get_buffer("0.weight_codes")[1].eq(0).all()
        got = quantized(x)
        assert got.isfinite().all()
        step = quantized.get_buffer(quantized.graph.find_nodes(op="output")[0].args[0][0].args[1].target)
        assert torch.all((got - model(x)).abs() <= step / 2 + 1e-6)


def test_a_dict_is_read_by_key_whatever_its_order() -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    left, right = torch.randn(16, 6), 10 * torch.randn(16, 6)
    straight = quantize(model, "w8a8", calibration=[{"left": left, "right": right}])
    crossed = quantize(
        model,
        "w8a8",
        calibration=[{"right": right, "left": left}],
        example_inputs=({"left": left, "right": right},),
    )
    assert straight.state_dict().keys() == crossed.state_dict().keys()
    assert all(torch.equal(v, crossed.state_dict()[k]) for k, v in straight.state_dict().items())


class Masked(nn.Module):
    """Two inputs, one of them not float, beside names that buffers of the quantizer would like to have."""

    def __init__(self) -> None:
        super().__init__()
        self.x_scale = nn.Parameter(torch.ones(4))
        self.first = nn.Linear(4, 4)
        self.first.register_buffer("weight_scale", torch.ones(4))
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.second(self.first(x) * mask) * self.x_scale * self.first.weight_scale


def test_masks_stay_what_they_are_and_names_of_the_author_stay_his() -> None:
    torch.manual_seed(0)
    model, x, mask = Masked(), torch.randn(64, 4), torch.rand(64, 4) > 0.5
    quantized = quantize(model, "w8a8", calibration=[(x, mask)])
    assert torch.equal(quantized.x_scale, model.x_scale)
    assert torch.equal(quantized.get_buffer("first.weight_scale"), torch.ones(4))
    assert list(quantized.plan.layers) == ["first", "second"]
    exact = model(x, mask)
    assert (quantized(x, mask) - exact).square().mean().sqrt() < 0.03 * exact.std()


def test_projections_of_attention_are_in_the_plan() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 5, 8)
    assert list(quantize(Attention().eval(), "w8a8", calibration=[x]).plan.layers) == [
        "attention",
        "attention.out_proj",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scheme": "w9a9"}, "There is no scheme 'w9a9': weight_bits=9 is outside 2..8"),
        ({"method": "magic"}, "There is no rounding method 'magic'. Known: rtn"),
        ({"observer": "minmaxx"}, "There is no range observer 'minmaxx'. Did you mean 'minmax'"),
        ({"weight_bits": 9}, r"weight_bits=9 is outside 2..8"),
        ({"weight_bits": 0}, r"weight_bits=0 is outside 2..8"),
    ],
)
def test_unknown_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(nn.Linear(2, 2), **{"scheme": "w8a8", "calibration": [torch.ones(1, 2)], **setting})


def test_weights_of_fewer_bits_are_held_in_bytes() -> None:
    model, batches = small()
    quantized = quantize(model, "w4a8", calibration=batches)
    assert (quantized.plan.scheme, quantized.plan.weight_bits) == ("w4a8", 4)
    held = quantized.get_buffer("conv.weight_codes")
    assert (held.dtype, int(held.abs().max())) == (torch.int8, 7)
    by_hand = quantize(model, Scheme(weight_bits=4, activation_bits=8), calibration=batches)
    assert torch.equal(quantized(batches[0]), by_hand(batches[0]))


def test_per_tensor_weights_share_the_largest_scale() -> None:
    model, batches = small()
    per_channel, per_tensor = (
        quantize(model, scheme, calibration=batches).get_buffer("conv.weight_scale")
        for scheme in ("w8a8", "w8a8-tensor")
    )
    assert torch.equal(per_tensor, per_channel.max().expand(4))


def test_quantizing_twice_is_refused() -> None:
    quantized = quantize(nn.Linear(2, 2), "w8a8", calibration=[torch.ones(2, 2)])
    with pytest.raises(ConfigError, match="quantized already, to w8a8"):
        quantize(quantized, "w8a8", calibration=[torch.ones(2, 2)])


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "needs calibration data .* got none"),
        ([], "needs calibration data .* got none"),
        (torch.ones(3, 2), "calibration is a tensor, but must be a list of batches"),
        ([torch.ones(3, 2), torch.ones(3, 5)], "Calibration batch 1 does not fit the model: .*3x5 and 2x2.* without t"),
        (
            [torch.ones(3, 2), (torch.ones(3, 2), torch.ones(3))],
            "batch 1 does not fit the model: it has 2 inputs, and the model takes 1",
        ),
        ([torch.tensor([[1.0, float("nan")]])], "The input 'input_1' is NaN or infinite"),
        ([torch.tensor([[1.0, float("inf")]])], "The input 'input_1' is NaN or infinite"),
    ],
)
def test_calibration_that_is_missing_or_wrong_is_refused(calibration, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        quantize(nn.Linear(2, 2), "w8a8", calibration=calibration)
    assert "\n" not in str(caught.value)


def test_the_layer_that_makes_nan_is_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(2, 2), nn.Linear(2, 2)
            self.root = Sqrt()

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.root(self.before(x)))

    class Sqrt(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = Root()
    nn.init.constant_(model.before.bias, -100)
    with pytest.raises(TaskError, match=r"output of layer 'root' \(sqrt\) is NaN"):
        quantize(model, "w8a8", calibration=[torch.ones(2, 2)])


@pytest.mark.parametrize(
    ("name", "message"), [("weight", "The weight of layer '1'"), ("bias", "The bias of layer '1'")]
)
def test_nan_in_a_parameter_is_refused_by_name(name: str, message: str) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        getattr(model[1], name)[0] = float("nan")
    with pytest.raises(CaptureError, match=message):
        quantize(model, "w8a8", calibration=[torch.ones(2, 2)])


def test_a_bias_out_of_all_proportion_is_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.bias, 1e30)
    with pytest.raises(CaptureError, match=r"Layer '' cannot be quantized: no float32 scale spans its input"):
        quantize(model, "w8a8", calibration=[torch.full((2, 2), 1e-30)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match=rf"{dtype}, and integer kernels are fed from float32. Quantize model.float"):
        quantize(nn.Linear(2, 2).to(dtype), "w8a8", calibration=[torch.ones(2, 2, dtype=dtype)])


@pytest.mark.parametrize("method", ["adaround", "signround", "gptq", "hqq", "standardized"])
def test_static_weights_may_be_rounded_by_other_methods(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8)).eval()
    mixed = torch.randn(12, 12)
    batches = [torch.randn(100, 12) @ mixed for _ in range(2)]
    exact = model(batches[0]).detach()
    nearest, learned = (quantize(model, "w3a8", calibration=batches, method=m) for m in ("rtn", method))
    assert learned.plan.method == learned.plan.layers["0"].method == method
    assert learned.get_buffer("0.weight_codes").abs().max() <= 3
    errors = [F.mse_loss(q(batches[0]), exact) for q in (learned, nearest)]
    if method in ("adaround", "gptq", "signround"):
        assert errors[0] < errors[1]
    assert errors[0] < exact.var()


@pytest.mark.parametrize(
    ("scheme", "method", "message"),
    [
        ("w4a8", "awq", "awq scales inputs, which w4a8 fixes. Use steps='smoothquant'"),
        ("w8a8-tensor", "gptq", "gptq keeps one scale a channel. Drop -tensor from w8a8-tensor"),
    ],
)
def test_methods_that_kernels_cannot_follow_are_refused(scheme: str, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(nn.Linear(2, 2), scheme, method=method, calibration=[torch.ones(1, 2)])
