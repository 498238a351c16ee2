"""Export to the runtime `torch`: data only, the same names, axes and checks as the ONNX path."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lighten.errors import CaptureError
from lighten.export import export
from lighten.quantize import quantize
from lighten.runtime.runner import load
from lighten.runtime.spec import TensorSpec
from tests.export.models import Axes, Constants, FixedBatch, Keyed, Logits, MaskedLogits, Several, Words


class Writes(nn.Module):
    """Writes into a view, and returns a number beside its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        y = self.linear(x)
        y[:, 0] = 7
        return self.drop(y).relu_(), x.shape[0]


class WritesIntoItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 7
        return x + 1


CASES: dict[str, tuple[type[nn.Module], tuple]] = {
    "axes": (Axes, (torch.randn(2, 3, 4), torch.randn(2, 5))),
    "fixed-batch": (FixedBatch, (torch.randn(2, 12),)),
    "keyed": (Keyed, ({"left": torch.randn(2, 3), "right": torch.randn(2, 3)},)),
    "constants": (Constants, (torch.randn(2, 3), 3, None)),
    "words": (Words, (torch.randint(0, 7, (2, 5)),)),
    "masked": (MaskedLogits, (torch.randn(2, 4),)),
    "several": (Several, (torch.randn(2, 4), torch.randn(2, 3))),
    "writes": (Writes, (torch.randn(2, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_artifact_agrees_and_is_described_like_the_onnx_one(name: str, tmp_path: Path) -> None:
    make, inputs = CASES[name]
    model = make()
    artifact = export(model, inputs, tmp_path / "torch", runtime="torch")
    assert sorted(artifact.files) == ["graph.json", "weights.safetensors"]
    # These are one layer deep: a few float32 roundings of 6e-8.
    assert 0 <= artifact.notes["rms_difference"] < 1e-6
    if name not in ("writes", "several"):  # ONNX names the number of `writes`, and renames an input of `several`
        other = export(model, inputs, tmp_path / "onnx")
        assert (artifact.inputs, artifact.outputs) == (other.inputs, other.outputs)


def test_one_example_is_enough_for_every_batch_size(tmp_path: Path) -> None:
    model = Writes().eval()
    runner = load(export(model, (torch.ones(1, 4),), tmp_path / "artifact", runtime="torch").path)
    for n in (0, 1, 7):
        x = torch.randn(n, 4)
        torch.testing.assert_close(runner(x=x), model(x)[0].detach())
    assert runner.artifact.outputs == (TensorSpec("output", "float32", ("batch", 4)),)


def test_batch_norm_is_folded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout())
    artifact = export(model, (torch.randn(1, 1, 5, 5),), tmp_path / "artifact", runtime="torch", threads=1)
    nodes = json.loads((artifact.path / "graph.json").read_text())["nodes"]
    computed = [node["op"] for node in nodes if node["op"] not in ("input", "weight")]
    assert computed == ["aten.conv2d.default", "aten.relu.default"]
    assert artifact.options == {"threads": 1}
    assert model.training


def test_a_write_into_the_callers_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="changes its arguments"):
        export(WritesIntoItsInput(), (torch.randn(2, 4),), tmp_path / "artifact", runtime="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_module_has_integer_kernels_elsewhere(tmp_path: Path) -> None:
    quantized = quantize(Logits(), "w8a8", calibration=[torch.randn(8, 4)])
    with pytest.raises(CaptureError, match="Export to onnxruntime instead"):
        export(quantized, (torch.randn(2, 4),), tmp_path / "artifact", runtime="torch")


def test_bfloat16_has_no_array(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="dtype 'bfloat16'"):
        export(Logits().bfloat16(), (torch.ones(2, 4).bfloat16(),), tmp_path / "artifact", runtime="torch")
