from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import CaptureError, ConfigError
from lighten.export import export
from lighten.plan import LayerPlan
from lighten.quantize import quantize
from lighten.quantize.dynamic import linear_dynamic
from lighten.runtime.cpu import int8_saturates, this_cpu
from lighten.runtime.onnxruntime import session_options
from lighten.runtime.runner import load


def by_integers(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Token by token, summed in int64."""
    out = torch.empty(*x.shape[:-1], len(codes))
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])).view(-1, x.ndim - 1).tolist():
        token = x[tuple(place)]
        step = token.abs().max() / 127 if token.abs().max() > 0 else torch.tensor(1.0)
        total = codes.long() @ (token / step).round().long()
        out[tuple(place)] = total.float() * step * scale
    return out if bias is None else out + bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 40), (2, 2500), (1, 2, 2, 5)])
def test_the_operator_is_what_integers_make_of_it(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    x[0] *= 100
    codes = torch.randint(-127, 128, (6, shape[-1])).to(torch.int8)
    scale, offset = torch.rand(6) / 100, torch.randn(6) if bias else None
    assert torch.equal(linear_dynamic(x, codes, scale, offset), by_integers(x, codes, scale, offset))


def test_sums_are_exact_where_they_are_largest() -> None:
    codes, x = torch.full((1, 5000), 127, dtype=torch.int8), torch.ones(1, 5000)
    assert linear_dynamic(x, codes, torch.ones(1), None).item() == pytest.approx(5000 * 127, rel=2**-22)


class Mixed(nn.Module):
    """A convolution, which stays float, tokens made of its pixels, and linear layers on three axes and two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 16, 3), nn.Linear(16, 64)
        self.down, self.head = nn.Linear(64, 16, bias=False), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).mT
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def test_the_artifact_computes_on_integers_what_the_module_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(16, 3, 8, 8)
    x[3] *= 50
    bits = 7 if int8_saturates(this_cpu()) else None
    quantized = quantize(model, "w8a8-dynamic", example_inputs=(x[:2],), weight_bits=bits)
    assert quantized.plan.layers == {
        name: LayerPlan(scheme="w8a8-dynamic", method="rtn") for name in ("up", "down", "head")
    }
    assert quantized.plan.skipped == {"conv": "not quantized: ranges at run time are for linear layers"}
    export(quantized, (x[:2],), tmp_path / "artifact")
    with torch.no_grad():
        simulated, exact = quantized(x), model(x)
    ran = load(tmp_path / "artifact", threads=1)(x)
    # Sums are the same integers. Convolution, gelu and mean differ by float rounding, which may turn a tie: one code
    # in 127 of one input, of which 64 at most make up an output.
    torch.testing.assert_close(ran, simulated, rtol=0, atol=float(exact.abs().max()) / 127 / 8)
    assert ((simulated - exact).norm(dim=1) < 0.02 * exact.norm(dim=1)).all()  # 8 bits a token, whatever its size
    options = session_options(threads=1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(tmp_path / "artifact" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert sum(n for op, n in found.items() if op.startswith(("MatMulInteger", "DynamicQuantizeMatMul"))) == 3
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(found)


def test_settings_are_heeded_and_what_has_no_meaning_is_refused() -> None:
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(16, 3, 8, 8)
    plain = quantize(model, "w8a8-dynamic", calibration=[x])
    for setting in ({"weight_bits": 4}, {"exclude": ["up"]}):
        assert not torch.equal(quantize(model, "w8a8-dynamic", calibration=[x], **setting)(x), plain(x))
    low = [quantize(model, "w3a8-dynamic; head=w8a8-dynamic", calibration=[x], method=m) for m in ("rtn", "gptq")]
    assert [q.get_buffer("head.weight_codes").abs().max() for q in low] == [127, 127]
    exact = model(x)
    assert F.mse_loss(low[1](x), exact) < F.mse_loss(low[0](x), exact)
    with pytest.raises(ConfigError, match="observer='mse' has no meaning for w8a8-dynamic"):
        quantize(model, "w8a8-dynamic", calibration=[x], observer="mse")
    with pytest.raises(ConfigError, match="awq scales inputs"):
        quantize(model, "w8a8-dynamic", calibration=[x], method="awq")
    with pytest.raises(CaptureError, match="float16"):
        quantize(nn.Linear(2, 2).half(), "w8a8-dynamic", example_inputs=(torch.ones(1, 2).half(),))
    model.up.weight.data[0, 0] = torch.nan
    with pytest.raises(CaptureError, match="The weight of layer 'up' holds NaN"):
        quantize(model, "w8a8-dynamic", calibration=[x])
