"""Weights as packed codes: in every kind of layer, tied, pruned, in half precision, and back from disk."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.plan import LayerPlan
from lighten.quantize import quantize
from lighten.quantize.formats import format_of
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.scheme import parse_scheme

SCHEMES = ["w8", "w4", "w4-g8", "w3-g5", "w2-g8-sym", "w5-asym", "w6", "w7-g8", "nf4-g8", "fp8", "fp8-e5m2-g8"]
SCHEMES += ["mxfp4", "nvfp4"]


class Every(nn.Module):
    """Every kind of layer with a weight, and a matrix that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 6, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(ids))
        x, _ = self.attention(x, x.flip(1), x.flip(1), need_weights=False)
        x = self.up(F.relu(self.norm(self.conv(x.mT)))).mT
        return self.head(x @ self.matrix)


@pytest.fixture(scope="module")
def every() -> tuple[Every, Tensor]:
    torch.manual_seed(0)
    return Every().eval(), torch.randint(0, 20, (2, 5))


def packed(module: nn.Module) -> dict[str, Tensor]:
    return {n: v for n, v in module.state_dict().items() if n.endswith(("_packed", "_codes"))}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_computed_is_what_the_codes_decode_to(scheme: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(13, 6), torch.randn(4, 13)
    quantized = quantize(model, scheme, example_inputs=(x,))
    parsed = parse_scheme(scheme)
    q = rtn(model.weight.detach(), format_of(parsed), parsed.group_size, RTNConfig())
    assert torch.equal(quantized(x), F.linear(x, q.dequantize(), model.bias))
    (codes,) = packed(quantized).values()
    assert codes.nbytes == 6 * -(-13 * parsed.weight_bits // 8)
    assert quantized.plan.layers == {"": LayerPlan(scheme=parsed.name, method="rtn")}


def test_every_kind_of_layer_is_quantized_and_a_tied_weight_stays_one(every) -> None:
    model, ids = every
    quantized = quantize(model, "w8", example_inputs=(ids,))
    assert set(packed(quantized)) == {
        *("head.weight_packed", "lstm.weight_ih_l0_packed", "lstm.weight_hh_l0_packed"),
        *("attention.in_proj_weight_packed", "attention.out_proj.weight_packed"),
        *("conv.weight_packed", "up.weight_packed"),
    }
    assert quantized.plan.skipped == {
        "matrix": "not quantized: 'matrix' is not the weight of a linear, convolution, embedding or recurrent layer"
    }
    assert not [node for node in quantized.graph.nodes if "batch_norm" in str(node.target)]
    exact = model(ids)
    # Eight weights in a row, each 8 bits of a range of about 4 standard deviations: 1 % each, and they add in squares.
    assert (quantized(ids) - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(("pattern", "gone"), [("embedding", "head"), ("head", "head"), ("att*", "attention")])
def test_excluded_layers_stay_float_and_take_a_tied_weight_with_them(every, pattern: str, gone: str) -> None:
    model, ids = every
    quantized = quantize(model, "w4", example_inputs=(ids,), exclude=[pattern])
    assert not [name for name in packed(quantized) if name.startswith(gone)]
    assert quantized.plan.skipped[gone] == "not quantized: excluded"


@pytest.mark.parametrize("scheme", ["w4-g8", "w3-g5", "nf4-g8", "fp8", "mxfp4", "nvfp4"])
def test_state_dict_round_trips_bit_for_bit(scheme: str, every, tmp_path: Path) -> None:
    model, ids = every
    quantized = quantize(model, scheme, example_inputs=(ids,))
    save_file(quantized.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(1.1)
    restored = quantize(other, scheme, example_inputs=(ids,))
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for name, value in quantized.state_dict().items():
        assert torch.equal(value.view(torch.uint8), restored.state_dict()[name].view(torch.uint8)), name
    assert torch.equal(restored(ids), quantized(ids))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pruned_weights_stay_pruned_and_rows_of_zeros_make_no_nan(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 5))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[torch.rand(5, 36) < 0.5] = 0
        model[2].weight[3] = 0
        model[2].bias.zero_()
    x = torch.randn(3, 2, 5, 5)
    quantized = quantize(model, scheme, example_inputs=(x,))
    assert torch.all(quantized(x)[:, 3] == 0)
    assert quantized(x).isfinite().all()
    seen: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if "dequantize" in str(n.target):
                seen[n.meta["layer"]] = value
            return value

    Watch(quantized).run(x)
    for layer, value in seen.items():
        assert torch.all(value[model.get_submodule(layer).weight == 0] == 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_keep_their_type(scheme: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, 6).to(dtype), torch.randn(4, 16, dtype=dtype)
    quantized = quantize(model, scheme, example_inputs=(x,))
    parsed = parse_scheme(scheme)
    q = rtn(model.weight.detach(), format_of(parsed), parsed.group_size, RTNConfig())
    assert quantized(x).dtype == dtype
    assert torch.equal(quantized(x), F.linear(x, q.dequantize().to(dtype), model.bias))


def test_it_trains_what_is_left_and_copies() -> None:
    torch.manual_seed(0)
    quantized = quantize(nn.Linear(8, 3), "w4-g8", example_inputs=(torch.ones(1, 8),))
    assert list(dict(quantized.named_parameters())) == ["bias"]
    quantized(torch.ones(1, 8)).sum().backward()
    assert quantized.get_parameter("bias").grad is not None
    copied = copy.deepcopy(quantized)
    assert torch.equal(copied(torch.ones(1, 8)), quantized(torch.ones(1, 8)))
    assert copied.plan == quantized.plan


def test_the_model_is_not_modified(every) -> None:
    model, ids = every
    before = copy.deepcopy(model.state_dict())
    quantize(model, "w4-g8", example_inputs=(ids,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.head.weight is model.embedding.weight


def test_a_group_above_the_row_is_the_row() -> None:
    model, x = nn.Linear(8, 3), torch.randn(2, 8)
    whole, above = (quantize(model, s, example_inputs=(x,)) for s in ("w4-asym", "w4-g128"))
    assert torch.equal(whole(x), above(x))


def test_an_empty_weight_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 2))
    quantized = quantize(model, "w4", example_inputs=(torch.ones(2, 4),))
    assert quantized.plan.skipped == dict.fromkeys("01", "not quantized: its weight is empty")


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({}, TaskError, "w4 needs example_inputs, or calibration data, to trace the model, and got none"),
        ({"observer": "mse"}, ConfigError, "observer='mse' has no meaning for w4, which leaves activations alone"),
        ({"weight_bits": 3}, ConfigError, "weight_bits=3 has no meaning for w4"),
        ({"method": "rnt"}, ConfigError, "There is no rounding method 'rnt'. Did you mean 'rtn'"),
    ],
)
def test_settings_without_meaning_are_refused(setting: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(nn.Linear(2, 2), "w4", **setting)


def test_calibration_data_may_stand_in_for_example_inputs() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert torch.equal(
        quantize(model, "w4", calibration=[x])(x), quantize(model, "w4", example_inputs=(x,), method=RTNConfig())(x)
    )


def test_quantizing_twice_is_refused() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ConfigError, match="quantized already, to w4"):
        quantize(quantize(nn.Linear(2, 2), "w4", example_inputs=(x,)), "w4", example_inputs=(x,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_weight_is_refused_by_name(bad: float) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = bad
    with pytest.raises(CaptureError, match="weight of layer '1' holds NaN"):
        quantize(model, "w4", example_inputs=(torch.ones(1, 2),))


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(CaptureError, match=r"on the meta device\. Load the checkpoint first"):
        quantize(model, "w4", example_inputs=(torch.ones(1, 2, device="meta"),))
