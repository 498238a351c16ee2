"""Every kind of layer under every kind of scheme: quantized, or left alone by name with a reason."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lighten
from lighten.errors import CaptureError, TaskError
from lighten.export import export
from lighten.quantize import quantize
from lighten.runtime.cpu import CPU


class Every(nn.Module):
    """Convolutions of every dimension both ways, recurrent layers, attention, and an embedding tied to a linear layer;
    one linear layer has no outputs, another no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.gru = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.conv1, self.up1 = nn.Conv1d(16, 8, 3, padding=1), nn.ConvTranspose1d(8, 8, 3, padding=1)
        self.conv2, self.up2 = nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.conv3, self.up3 = nn.Conv3d(1, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 3, padding=1)
        self.nothing, self.from_nothing = nn.Linear(8, 0), nn.Linear(0, 8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(ids))
        x, _ = self.gru(x)
        x, _ = self.attention(x, x, x, need_weights=False)
        x = self.up1(F.relu(self.conv1(x.mT))).mT
        x = self.up2(F.relu(self.conv2(x[:, None]))).mean(1)
        x = self.up3(F.relu(self.conv3(x[:, None, None]))).mean((1, 2))
        return self.head(x + self.from_nothing(self.nothing(x)))


LAYERS = {
    *("embedding", "lstm", "gru", "attention", "attention.out_proj", "conv1", "up1", "conv2", "up2", "conv3", "up3"),
    *("nothing", "from_nothing", "head"),
}
KINDS = [("w8a8", None), ("w4a8", "gptq"), ("w8a8-dynamic", None), ("w4-g4", "gptq"), ("w4-g4", "awq"), ("nf4", None)]


@pytest.mark.parametrize(("scheme", "method"), KINDS)
def test_every_layer_is_quantized_or_named_with_a_reason(scheme: str, method: str | None) -> None:
    torch.manual_seed(0)
    model, ids = Every().eval(), torch.randint(0, 20, (4, 5))
    quantized = quantize(model, scheme, method=method, calibration=[ids])
    done, skipped = set(quantized.plan.layers), quantized.plan.skipped
    weights_alone = scheme in ("w4-g4", "nf4")
    assert done.isdisjoint(skipped)
    assert done | set(skipped) == (LAYERS - {"embedding"} if weights_alone else LAYERS)  # one weight, under one name
    assert all(reason.startswith("not quantized: ") for reason in skipped.values())
    assert {skipped[name] for name in ("nothing", "from_nothing")} == {"not quantized: its weight is empty"}
    if not weights_alone:
        assert {"attention", "attention.out_proj"} <= done
        assert quantized.get_parameter("head.weight").shape == (20, 8)  # tied: neither reader is integer, and it is one
    assert quantized(ids).isfinite().all()


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic", "w4"])
def test_parameters_that_are_no_numbers_are_refused_by_name(scheme: str) -> None:
    x = torch.ones(2, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].bias[0] = torch.inf
    with pytest.raises(CaptureError, match="The bias of layer '1' holds NaN or infinite values"):
        quantize(model, scheme, calibration=[x])
    with pytest.raises(
        CaptureError, match=r"The weight of layer '0' is on the meta device\. Load the checkpoint first"
    ):
        quantize(model.to("meta"), scheme, calibration=[x])


@pytest.mark.parametrize(("scheme", "method"), [("w8a8", None), ("w4", "gptq")])
def test_a_batch_without_samples_is_refused_by_number(scheme: str, method: str | None) -> None:
    batches = [torch.ones(2, 3), torch.ones(0, 3)]
    with pytest.raises(TaskError, match=r"Calibration batch 1 is empty: it holds a tensor of shape \[0, 3\]"):
        quantize(nn.Linear(3, 3), scheme, method=method, calibration=batches)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_cpu_whose_products_saturate_gets_7_bits_and_the_manifest_says_why(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(8, 6)

    def with_cpu(vnni: bool, **settings: int) -> lighten.quantize:
        cpu = CPU(name="Old CPU", architecture="x86_64", cores=2, avx2=True, vnni=vnni)
        monkeypatch.setattr("lighten.runtime.cpu.this_cpu", lambda: cpu)
        return quantize(model, scheme, calibration=[x], **settings)

    plans = [with_cpu(True).plan, with_cpu(False, weight_bits=8).plan]
    assert [(plan.weight_bits, plan.weight_bits_because) for plan in plans] == [(8, None), (8, None)]
    quantized = with_cpu(False)
    codes = [value for name, value in quantized.named_buffers() if name.endswith("weight_codes")]
    assert [int(value.abs().max()) for value in codes] == [63, 63]
    plan = export(quantized, (x,), tmp_path / "artifact").plan
    assert plan is not None
    assert plan.weight_bits == 7
    assert "Old CPU, on which they were made, has no VNNI" in plan.weight_bits_because


@pytest.mark.parametrize(("scheme", "method"), [("w8a8", "mse"), ("w8a8-dynamic", "gptq"), ("w4-g4", "gptq")])
def test_progress_names_each_layer(scheme: str, method: str) -> None:
    said: list[str] = []
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    quantize(model, scheme, method=method, calibration=[torch.randn(8, 6)] * 2, on_progress=said.append)
    assert said[0] == "tracing the model"
    assert [line.split(",")[0] for line in said if line.startswith("layer")] == ["layer 1 of 2", "layer 2 of 2"]
    if scheme == "w8a8":
        assert said[1:3] == ["ranges of activations, batch 1", "ranges of activations, batch 2"]
