from pathlib import Path

import pytest
import torch
from torch import nn

from lighten.accelerate import drafts as module
from lighten.accelerate.drafts import thread_counts, ways, write_drafts
from lighten.graph.capture import capture
from tests.export.models import Outlandish

X = (torch.randn(2, 4),)


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (8, [1, 2, 4, 8]), (64, [1, 4, 16, 64])],
)
def test_a_few_thread_counts_up_to_all_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_the_simplest_way_comes_first_and_images_have_another_layout() -> None:
    flat = [way.name for way in ways(capture(nn.Linear(4, 4), X))]
    assert flat == ["onnxruntime", "openvino", "native", "torch", "torch compiled"]
    images = [way.name for way in ways(capture(nn.Conv2d(1, 1, 3), (torch.randn(1, 1, 4, 4),)))]
    assert images == [*flat[:4], "torch channels-last", flat[4], "torch compiled channels-last"]


def test_another_device_is_raced_against_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_other_devices", lambda: True)
    assert [way.options for way in ways(capture(nn.Linear(4, 4), X))][:2] == [{}, {"provider": "CPUExecutionProvider"}]


def test_what_cannot_be_lowered_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = Outlandish()
    by_name = {draft.name: draft for draft in write_drafts(capture(model, X), X, None, tmp_path)}
    assert "airy" in by_name["onnxruntime"].refused
    assert by_name["openvino"].refused == by_name["onnxruntime"].refused
    assert by_name["onnxruntime"].candidates([1, 2]) == []
    assert by_name["openvino"].refusal().candidate.name == "openvino"
    assert [c.name for c in by_name["torch"].candidates([1, 2])] == ["torch, 1 thread", "torch, 2 threads"]
