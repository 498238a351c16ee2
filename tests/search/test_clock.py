"""A device that is described: what is predicted for a point of the search is predicted for the network it leads to."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lighten
from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.runtime.device import Figure, load_profile
from lighten.search.allocate import total_cost
from lighten.search.clock import computes_in, dtype_of, predicted_ms, schemes_for
from lighten.search.config import SearchConfig
from lighten.search.realize import recovered
from lighten.search.space import device_terms, look_at, space
from lighten.search.workers import Workers, quiet
from lighten.task import Task
from lighten.tasks.networks import InvertedResidual
from tests.tiny import TinyNet, tiny_task

PI = load_profile("raspberry-pi-5")
ONLY_INT8 = replace(PI, name="only-int8", peak_macs_per_s={"int8": PI.peak_macs_per_s["int8"]}, channel_alignment={})


class Lean(nn.Module):
    """Depthwise layers, whose inputs are their outputs, and channels that have to agree."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1, 4), InvertedResidual(8, 16, 2, 4))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("model", [TinyNet, Lean])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_predicted_for_a_point_is_predicted_for_its_network(model: type[nn.Module], dtype: str) -> None:
    torch.manual_seed(0)
    task = replace(tiny_task(), model=model().eval(), train=None, loss=None)
    config = SearchConfig(batch=3, importance="l2")
    network = look_at(Workers(task), config, quiet, ("channels",))
    made = space(network, "channels", device_terms(network, "channels", PI, dtype), 1.0)
    draw = random.Random(0)
    for _ in range(4):
        picked = [draw.randrange(len(choice.options)) for choice in made.choices]
        variant = made.variant(made.at(picked), in_ms=True)
        found = recovered(task, variant, config, lambda share: None) if any(picked) else captured(task)
        assert total_cost(made.terms, picked) == pytest.approx(
            predicted_ms(PI, found, task.example_inputs, dtype, batch=3), rel=1e-9
        )


def captured(task: Task) -> Any:
    return capture(task.model, task.example_inputs)


def test_schemes_are_those_that_the_device_computes_in() -> None:
    assert [dtype_of(scheme) for scheme in (None, "w8", "w8a8", "w4-g64", "w4a8")] == [
        *("float32", "float32", "int8", "float32", "int8")
    ]
    assert (computes_in(PI), computes_in(ONLY_INT8)) == ("float32", "int8")
    assert schemes_for(PI, (None, "w8a8")) == (None, "w8a8")
    assert schemes_for(ONLY_INT8, (None, "w8a8")) == ("w8a8",)
    with pytest.raises(ConfigError, match="'only-int8' computes in int8, and none of float, w8 does"):
        schemes_for(ONLY_INT8, (None, "w8"))


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def latency(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was timed")

    monkeypatch.setattr(Workers, "latency", latency)


def test_compress_for_a_device_times_nothing_here(tmp_path: Path, unmeasured: None) -> None:
    slow = 1e-3  # a tiny network is all overhead, which no pruning saves
    device = replace(
        PI, op_overhead_s=Figure(1e-9, "a test"), peak_macs_per_s={k: Figure(slow * v.value, "a test") for k, v in
        PI.peak_macs_per_s.items()}, channel_alignment={},
    )  # fmt: skip
    config = SearchConfig(epochs=3, max_trials=4, long_factor=1)
    result = lighten.compress(tiny_task(), max_drop=0.1, out_dir=tmp_path / "out", device=device, config=config)
    data = result.data
    assert data["device"] == device.to_dict()
    for side in ("baseline", "compressed"):
        latency = data[side]["latency_ms"]
        assert (latency["runtime"], latency["threads"]) == ("raspberry-pi-5, predicted", None)
        assert latency["median"] == latency["p90"]
    assert not any("zeros" in candidate["name"] for candidate in data["candidates"])
    made = [c for c in data["candidates"] if "latency_ms" in c]
    assert all(c["latency_ms"]["median"] == c["predicted_ms"] for c in made)
    assert {c["latency_ms"]["runtime"] for c in made} == {"raspberry-pi-5, predicted"}
    assert data["speedup"] > 1.5
    assert data["speedup_ci95"] == [data["speedup"]] * 2
    assert "predicted to be" in result.verdict
    assert "on raspberry-pi-5" in result.verdict
    page = (result.path / "report.html").read_text()
    assert "raspberry-pi-5, predicted" in page
    assert "predicted: how far it is off is not known" in page
    assert "a call, predicted" in page
    assert lighten.load(result.path / "artifact").artifact.runtime == "onnxruntime"


def test_what_is_listed_with_zeros_is_not_tried_for_a_device(tmp_path: Path, unmeasured: None) -> None:
    config = SearchConfig(ratios=(0.5,), sparsities=(0.5,), epochs=1, schemes=(None, "w8a8"))
    result = lighten.compress(
        tiny_task(), max_drop=0.5, max_latency_ms=1e-9, out_dir=tmp_path / "out", device=ONLY_INT8, config=config
    )
    notes = {c["name"]: c["note"] for c in result.data["candidates"]}
    assert notes == {
        "50 % of channels, w8a8": "",
        "50 % zeros in blocks of 4×1, w8": "not tried: what zeros gain on only-int8 is not in its profile",
    }
    assert not result.accepted
    assert "max_latency_ms=1e-09" in result.verdict


def test_a_device_and_a_target_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'raspberry-pi-5' or of nodes with 'pi'"):
        lighten.compress(tiny_task(), max_drop=0.1, out_dir=tmp_path / "o", device="raspberry-pi-5", target_label="pi")
    with pytest.raises(ConfigError, match="no device profile 'nonsense'"):
        lighten.compress(tiny_task(), max_drop=0.1, out_dir=tmp_path / "o", device="nonsense")
