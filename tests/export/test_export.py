from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lighten.errors import ArtifactError, CaptureError, ConfigError
from lighten.export import export, verb
from lighten.quantize import quantize
from lighten.runtime.runner import load
from tests.export.models import (
    Axes,
    Branches,
    Constants,
    FixedBatch,
    Keyed,
    Logits,
    MaskedLogits,
    Outlandish,
    Several,
    Words,
)

CASES: dict[str, tuple[type[nn.Module], tuple]] = {
    "several": (Several, (torch.randn(2, 4), torch.randn(2, 3))),
    "branches": (Branches, (torch.randn(2, 4),)),
    "axes": (Axes, (torch.randn(2, 3, 4), torch.randn(2, 5))),
    "fixed-batch": (FixedBatch, (torch.randn(2, 12),)),
    "keyed": (Keyed, ({"left": torch.randn(2, 3), "right": torch.randn(2, 3)},)),
    "constants": (Constants, (torch.randn(2, 3), 3, None)),
    "words": (Words, (torch.randint(0, 7, (2, 5)),)),
    "masked": (MaskedLogits, (torch.randn(2, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_artifact_agrees_and_says_how_well(name: str, tmp_path: Path) -> None:
    make, inputs = CASES[name]
    artifact = export(make(), inputs, tmp_path / "artifact")
    # These are one layer deep: a few float32 roundings of 6e-8.
    assert 0 <= artifact.notes["rms_difference"] <= artifact.notes["max_difference"] * 3 < 1e-5
    assert artifact.plan is None
    assert list(artifact.files) == ["model.onnx"]


def test_one_example_is_enough_for_every_batch_size(tmp_path: Path) -> None:
    model = Logits().eval()
    runner = load(export(model, (torch.ones(1, 4),), tmp_path / "artifact").path)
    for n in (0, 1, 7):
        x = torch.randn(n, 4)
        torch.testing.assert_close(runner(features=x), model(x).detach())


def test_a_quantized_module_carries_its_plan_and_tolerance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    quantized = quantize(Logits(), "w8a8", calibration=[x], weight_bits=7)
    artifact = export(quantized, (x,), tmp_path / "artifact", threads=1)
    assert artifact.plan == quantized.plan
    assert artifact.options == {"threads": 1}
    # Nothing is rounded after the only layer, so that integer sums and their float simulation differ in float alone.
    assert artifact.notes["max_difference"] < 1e-5


def test_a_dict_in_another_order_than_the_captured_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(8, 3), 10 * torch.randn(8, 3)
    captured = quantize(Keyed(), "w8a8", calibration=[{"left": left, "right": right}])
    artifact = export(captured, ({"right": right, "left": left},), tmp_path / "artifact")
    got = load(artifact.path)(x_left=left.numpy(), x_right=right.numpy())
    np.testing.assert_allclose(got, left - 2 * right, rtol=1e-6)


class Ends(nn.Module):
    """One of two outputs is a thousand times smaller than the other."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 1000 * x, x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: (a, b * 1.01), "differ from the module's by 0.01 of their size"),
        (lambda a, b: (a, b * np.nan), "differ from the module's by nan"),
        (lambda a, b: (a * np.inf, b), "differ from the module's by inf"),
    ],
    ids=["the smaller of two", "nan", "inf"],
)
def test_outputs_that_disagree_are_not_written(
    spoil, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_spoiled(path: Path):
        runner = load(path)
        return lambda inputs: tuple(spoil(*runner(inputs)))

    monkeypatch.setattr(verb, "load", load_spoiled)
    with pytest.raises(ArtifactError, match=message):
        export(Ends(), (torch.randn(2, 3),), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CaptureError):
        export(Outlandish(), (torch.ones(2, 4),), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists with other content"):
        export(Logits(), (torch.ones(2, 4),), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_runtime_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime 'abacus'\. Available: onnxruntime, openvino"):
        export(Logits(), (torch.ones(2, 4),), tmp_path / "artifact", runtime="abacus")


def test_the_model_keeps_its_modes_and_inputs_may_require_grad(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model[1].eval()  # as frozen statistics are
    export(model, (torch.ones(2, 4, requires_grad=True),), tmp_path / "artifact")
    assert [module.training for module in model] == [True, False, True]


def test_half_precision_is_computed_in_half_precision(tmp_path: Path) -> None:
    x = torch.randn(2, 4, dtype=torch.float16)
    artifact = export(Logits().half(), (x,), tmp_path / "artifact")
    assert artifact.inputs[0].dtype == "float16"
    # Four products and a bias: a handful of roundings at 2^-11, relative to sums of the same size.
    assert artifact.notes["max_difference"] < 5 * 2**-11
