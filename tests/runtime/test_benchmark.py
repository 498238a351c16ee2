import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lighten.cli import app
from lighten.cli.benchmark import draw, sentence
from lighten.errors import ConfigError
from lighten.runtime import benchmark as library
from lighten.runtime.artifact import read_artifact
from lighten.runtime.energy import EnergyMeter, energy_meter
from lighten.runtime.measure import LatencySample
from lighten.runtime.native.profiler import LayerTimes
from lighten.runtime.spec import TensorSpec
from lighten.runtime.throughput import Throughput
from tests.runtime.models import write_linear, write_two


def pretend(monkeypatch: pytest.MonkeyPatch, medians_ms: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """Let measure_latency return blocks of these medians, by folder name; return what it was asked."""
    asked: dict[str, Any] = {}

    def fake(artifacts: dict[str, Path], inputs: list[np.ndarray], **settings: Any) -> dict[str, LatencySample]:
        asked.update(settings, inputs=inputs)
        rounds = {name: medians_ms[Path(name).name] for name in artifacts}
        return {
            name: LatencySample(blocks_ms=(tuple(np.full(3, value) for value in values),), **more)
            for name, values in rounds.items()
        }

    monkeypatch.setattr(library, "measure_latency", fake)
    return asked


def test_a_difference_is_named_and_a_tie_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"a": [2.0] * 8, "b": [1.0] * 8, "c": [4.0] * 8, "d": [1.0, 4.0] * 4}, energy_mj=3.25)
    for name in "abcd":
        write_linear(tmp_path / name)
    found = library.benchmark([tmp_path / name for name in "abcd"])
    assert [entry.verdict for entry in found.entries] == ["baseline", "faster", "slower", "not different"]
    said = [sentence(entry, "a") for entry in found.entries[1:]]
    assert said[0].endswith("b: 2.00 times faster than a.")
    assert said[1].endswith("c: 2.00 times slower than a.")
    assert "no difference from a is shown" in said[2]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["entries"][1]["speedup"] == {"value": 2.0, "ci95": [2.0, 2.0]}
    assert data["entries"][0]["size_bytes"] == read_artifact(tmp_path / "a").size_bytes
    assert data["entries"][0]["energy_mj"] == 3.25
    assert "mJ a call" in [column.header for column in draw(found).columns]


def test_too_few_rounds_are_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"a": [2.0], "b": [1.0]})
    write_linear(tmp_path / "a")
    write_linear(tmp_path / "b")
    found = library.benchmark([tmp_path / "a", tmp_path / "b"])
    assert found.entries[1].verdict == "not different"
    assert found.to_dict()["entries"][1]["speedup"]["ci95"] == [0.0, None]


def test_settings_reach_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {"a": [1.0], "b": [1.0]})
    write_linear(tmp_path / "a", options={"threads": 3})
    write_linear(tmp_path / "b", options={})
    monkeypatch.setattr(library, "usable_cores", lambda: 7)
    folders = [tmp_path / "a", tmp_path / "b"]
    library.benchmark(folders, batch=5, processes=2, blocks=9, min_block_ms=1.5)
    assert list(asked["threads"].values()) == [3, 7]
    assert asked["inputs"][0].shape == (5, 3)
    assert (asked["processes"], asked["blocks"], asked["min_block_ms"]) == (2, 9, 1.5)
    library.benchmark(folders, threads=4)
    assert list(asked["threads"].values()) == [4, 4]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    write_two(tmp_path / "b")
    write_linear(tmp_path / "c", inputs=[TensorSpec("x", "float32", ("batch", "seq"))])
    with pytest.raises(ConfigError, match="same inputs"):
        library.benchmark([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ConfigError, match="named twice"):
        library.benchmark([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(ConfigError, match="--size seq=128"):
        library.benchmark([tmp_path / "c"])


def test_made_up_inputs_are_valid_and_the_same_each_time() -> None:
    spec = TensorSpec("x", "float16", ("batch", "seq", 2))
    made = library.made_up(spec, {"batch": 2, "seq": 3})
    assert (made.shape, made.dtype) == ((2, 3, 2), np.float16)
    assert np.array_equal(made, library.made_up(spec, {"batch": 2, "seq": 3}))
    assert not library.made_up(TensorSpec("ids", "int64", (4,)), {}).any()


def test_the_command_end_to_end(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    write_linear(tmp_path / "b", inputs=[TensorSpec("x", "float32", ("batch", "n"))])
    options = ["--vs", str(tmp_path / "b"), "--size", "n=3", "--processes", "1", "--blocks", "6", "--block-ms", "1"]
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "a"), *options, "--batch", "2", "--format", "json"])
    data = json.loads(result.stdout)
    assert [entry["name"] for entry in data["entries"]] == [str(tmp_path / "b"), str(tmp_path / "a")]
    assert data["batch"] == 2
    assert all(entry["median_ms"] > 0 for entry in data["entries"])
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "a"), *options])
    assert result.stdout == ""
    assert "median" in result.stderr
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "a"), "--size", "n"])
    assert result.exit_code == 2


def test_throughput_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(folder: Path, inputs: list[np.ndarray], **settings: Any) -> list[Throughput]:
        asked.update(settings, shape=inputs[0].shape)
        return [Throughput(1, 100.0, 1.0), Throughput(2, 180.0, 0.9)]

    monkeypatch.setattr(library, "measure_throughput", fake)
    write_linear(tmp_path / "a")
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "a"), "--throughput", "--batch", "4"])
    assert (asked["shape"], asked["n_samples"]) == ((4, 3), 4)
    assert "90%" in result.stderr
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "a"), "--throughput", "--format", "json"])
    assert json.loads(result.stdout)[str(tmp_path / "a")][1] == {
        "workers": 2,
        "samples_per_s": 180.0,
        "efficiency": 0.9,
    }


def test_layers_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(artifacts: dict[str, Path], inputs: list[np.ndarray], **settings: Any) -> dict[str, LayerTimes]:
        asked.update(settings, shape=inputs[0].shape)
        return {name: LayerTimes(0.05, {"": 0.001, "conv": 0.03, "fc": 0.009}) for name in artifacts}

    monkeypatch.setattr(library, "profile", fake)
    path = str(write_linear(tmp_path / "a", options={"threads": 3}).path)
    result = CliRunner().invoke(app, ["benchmark", path, "--layers", "--batch", "4"])
    assert asked == {"threads": 3, "shape": (4, 3)}
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in result.stderr.splitlines() if "│" in line}
    assert [*rows] == ["conv", "fc", "(before the first layer)", "(around the engine)"]
    assert [cell.strip() for cell in rows["conv"]] == ["30.00", "60.0%"]
    assert [cell.strip() for cell in rows["(around the engine)"]] == ["10.00", "20.0%"]
    result = CliRunner().invoke(app, ["benchmark", path, "--layers", "--format", "json"])
    assert json.loads(result.stdout)[path] == {"whole": 0.05, "layers": {"": 0.001, "conv": 0.03, "fc": 0.009}}
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["benchmark", path, "--layers"])
    assert "Only the native engine tells" in str(result.exception)


def test_energy_is_counted_over_a_wrap(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("5000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9000000\n")
    meter = energy_meter(tmp_path)
    before = meter.read()
    assert before == (5_000_000, 5_000_000)  # packages, not the parts of one
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("6500000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000\n")
    assert meter.joules_between(before, meter.read()) == 1.5 + 5.0
    (tmp_path / "intel-rapl:1" / "max_energy_range_uj").unlink()
    assert meter.joules_between(before, meter.read()) is None


def test_without_counters_there_is_no_energy(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()  # as where only root may read it
    meter = energy_meter(tmp_path)
    assert meter == EnergyMeter(())
    assert meter.joules_between(meter.read(), meter.read()) is None
