from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from lighten.errors import ConfigError
from lighten.runtime import fit as fitting
from lighten.runtime.device import DeviceProfile, Figure, load_profile, shipped_profiles
from lighten.runtime.fit import fit_profile, fit_this_machine, sample_layers
from lighten.runtime.layer_model import layer_onnx, layer_specs
from lighten.runtime.roofline import Layer, padded_macs, predict, predict_seconds


def profile(**changes: Any) -> DeviceProfile:
    """1 GMAC/s in float32 and four times that in int8, 1 GB/s, 1 ms an operator."""
    figures: dict[str, Any] = {
        "name": "toy",
        "description": "a toy",
        "peak_macs_per_s": {"float32": Figure(1e9, "made up"), "int8": Figure(4e9, "made up")},
        "efficiency": Figure(0.5, "made up"),
        "depthwise_efficiency": Figure(0.1, "made up"),
        "memory_bytes_per_s": Figure(1e9, "made up"),
        "op_overhead_s": Figure(1e-3, "made up"),
    }
    return DeviceProfile(**{**figures, **changes})


CONV = Layer(in_channels=10, out_channels=20, kernel=(3, 3), size=(10, 10), stride=2, batch=2)


def test_hand_worked_counts() -> None:
    assert CONV.macs == 2 * 100 * 20 * 10 * 9
    assert CONV.n_weights == 20 * 10 * 9
    assert CONV.n_bytes == 4 * (1800 + 2 * 10 * 400 + 2 * 20 * 100)
    linear = Layer(in_channels=100, out_channels=30)
    assert (linear.macs, linear.n_bytes) == (3000, 4 * (3000 + 100 + 30))


def test_arithmetic_bound_memory_bound_and_overhead() -> None:
    assert predict_seconds(CONV, profile()) == pytest.approx(1e-3 + CONV.macs / (1e9 * 0.5))
    starved = profile(memory_bytes_per_s=Figure(1e6, "made up"))
    assert predict_seconds(CONV, starved) == pytest.approx(1e-3 + CONV.n_bytes / 1e6)
    cached = profile(
        memory_bytes_per_s=Figure(1e6, "made up"),
        cache_bytes=Figure(1e6, "made up"),
        cache_bytes_per_s=Figure(2e6, "made up"),
    )
    assert predict_seconds(CONV, cached) == pytest.approx(1e-3 + CONV.n_bytes / 2e6)
    depthwise = Layer(in_channels=8, out_channels=8, groups=8, kernel=(3, 3), size=(50, 50))
    assert predict_seconds(depthwise, profile()) == pytest.approx(1e-3 + depthwise.macs / (1e9 * 0.1))


def test_channels_are_padded_to_the_alignment() -> None:
    aligned = profile(channel_alignment={"float32": Figure(16, "made up")})
    assert padded_macs(CONV, aligned) == CONV.macs * 32 / 20  # 10 inputs are fewer than a vector
    wide = Layer(in_channels=17, out_channels=16)
    assert padded_macs(wide, aligned) == wide.macs * 32 / 17
    assert padded_macs(CONV, profile()) == CONV.macs


def test_a_prediction_says_that_it_is_one() -> None:
    found = predict([CONV, CONV], profile())
    data = found.to_dict()
    assert data["kind"] == "predicted"
    assert data["predicted_ms"] == pytest.approx(2e3 * predict_seconds(CONV, profile()))
    assert not any("predicted" not in key and key.endswith("_ms") for key in [*data, *data["layers"][0]])


def test_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="'toy' does not support float16"):
        predict([Layer(in_channels=1, out_channels=1, dtype="float16")], profile())


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_figure_has_its_source(name: str) -> None:
    found = load_profile(name)
    assert found.name == name
    assert DeviceProfile.from_dict(found.to_dict()) == found
    figures = [*found.peak_macs_per_s.values(), found.memory_bytes_per_s, found.op_overhead_s, found.efficiency]
    assert all(len(figure.source) > 10 for figure in figures)
    assert "int8" in found.peak_macs_per_s
    big = Layer(in_channels=256, out_channels=256, kernel=(3, 3), size=(14, 14), dtype="int8")
    assert 0 < predict([big], found).total_ms < 1e4


def test_the_shipped_devices_rank_as_they_should() -> None:
    layer = Layer(in_channels=512, out_channels=512, kernel=(3, 3), size=(56, 56), batch=8, dtype="int8")
    names = ["cortex-m7", "raspberry-pi-5", "phone-npu", "jetson-agx-orin", "xeon-8480", "nvidia-a100"]
    times_ms = [predict([layer], load_profile(name)).total_ms for name in names]
    assert times_ms == sorted(times_ms, reverse=True)
    assert sorted(names) == shipped_profiles()


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile().save(tmp_path / "toy.yaml")
    assert load_profile(tmp_path / "toy.yaml") == profile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is a mapping"),
        ("a: [", "not YAML"),
        ("name: x", "incomplete"),
        ("name: x\nspeed: 3", "speed"),
        ("name: 3", "not text"),
        ("op_overhead_s: 3", "A figure is"),
        ("op_overhead_s: {value: 3}", "A figure is"),
        ("op_overhead_s: {value: 3, source: ''}", "no source"),
        ("op_overhead_s: {value: -3, source: x}", "not positive"),
        ("op_overhead_s: {value: 1e9, source: x}", "with the point"),
        ("op_overhead_s: {value: .inf, source: x}", "not positive and finite"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_profile(tmp_path / "bad.yaml")


def test_profiles_check_themselves() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_profile("abacus")
    with pytest.raises(ConfigError, match="Give both or none"):
        profile(cache_bytes=Figure(1.0, "made up"))
    with pytest.raises(ConfigError, match="supports no dtype"):
        profile(peak_macs_per_s={})
    with pytest.raises(ConfigError, match=r"dtypes \['int3'\]"):
        profile(peak_macs_per_s={"int3": Figure(1.0, "made up")})


def test_the_fit_finds_the_roofline_that_made_the_times() -> None:
    true = profile(
        op_overhead_s=Figure(8e-6, "made up"),
        peak_macs_per_s={"float32": Figure(5e10, "made up"), "int8": Figure(2e11, "made up")},
        efficiency=Figure(1.0, "made up"),
        memory_bytes_per_s=Figure(2e10, "made up"),
        channel_alignment={"float32": Figure(8, "made up"), "int8": Figure(16, "made up")},
    )
    layers = [layer for dtype in ("float32", "int8") for layer in sample_layers(40, dtype, seed=1)]
    seconds = np.array([predict_seconds(layer, true) for layer in layers])
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, len(seconds)))
    found = fit_profile(layers, seconds * noise, name="x", source="made up")
    assert {dtype: figure.value for dtype, figure in found.channel_alignment.items()} == {"float32": 8, "int8": 16}
    for dtype, figure in true.peak_macs_per_s.items():
        assert found.peak_macs_per_s[dtype].value == pytest.approx(figure.value, rel=0.1)
    assert found.op_overhead_s.value == pytest.approx(8e-6, rel=0.1)


def test_layers_are_different_small_enough_and_the_same_each_time() -> None:
    layers = sample_layers(60, "float32", seed=0)
    assert len(set(layers)) == 60
    assert all(layer.macs <= fitting.MAX_MACS for layer in layers)
    assert layers == sample_layers(60, "float32", seed=0) != sample_layers(60, "float32", seed=1)
    assert any(layer.is_depthwise for layer in layers)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "shape",
    [
        {"in_channels": 8, "out_channels": 4},
        {"in_channels": 3, "out_channels": 4, "kernel": (3, 3), "size": (5, 6), "stride": 2, "batch": 2},
        {"in_channels": 4, "out_channels": 4, "groups": 4, "kernel": (3, 3), "size": (5, 5)},
    ],
    ids=["linear", "strided", "depthwise"],
)
def test_a_layer_becomes_the_model_that_it_says(shape: dict[str, Any], dtype: str) -> None:
    layer = Layer(**shape, dtype=dtype)
    inputs, outputs = layer_specs(layer)
    session = ort.InferenceSession(layer_onnx(layer), providers=["CPUExecutionProvider"])
    x = np.ones([int(size) for size in inputs.shape], inputs.dtype)
    (y,) = session.run(None, {"x": x})
    assert (y.shape, y.dtype.name) == (outputs.shape, outputs.dtype)


def test_layers_of_other_dtypes_cannot_be_timed() -> None:
    with pytest.raises(ConfigError, match="not in float16"):
        layer_onnx(Layer(in_channels=1, out_channels=1, dtype="float16"))


def test_a_fit_from_end_to_end_on_two_layers() -> None:
    seen: list[tuple[int, int]] = []
    fit = fit_this_machine(
        threads=1, dtypes=["float32"], n_fitted=3, n_held_out=2, on_progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (5, 5)
    assert fit.n_held_out == 2
    assert set(fit.rank_correlation) == {"float32"}
    assert fit.profile.name == "this-machine"


def test_the_command_shows_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lighten.cli import app

    asked: dict[str, Any] = {}

    def fake(**settings: Any) -> fitting.Fit:
        asked.update(settings)
        settings["on_progress"](1, 2)
        return fitting.Fit(profile(), {"float32": 0.95}, {"float32": 0.1}, settings["n_held_out"])

    monkeypatch.setattr(fitting, "fit_this_machine", fake)
    result = CliRunner().invoke(app, ["profile", "--show", "raspberry-pi-5", "--format", "json"])
    assert "7.68e10" in result.stdout or "76800000000.0" in result.stdout
    assert not asked
    result = CliRunner().invoke(
        app,
        ["profile", "--layers", "11", "--held-out", "7", "--threads", "3", "--seed", "5", "-o", str(tmp_path / "me")],
    )
    assert (asked["n_fitted"], asked["n_held_out"], asked["threads"], asked["seed"]) == (11, 7, 3, 5)
    assert "rank correlation 0.950" in " ".join(result.stderr.split())
    assert load_profile(tmp_path / "me") == profile()
