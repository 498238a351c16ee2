"""Fit a device profile to this machine: time single layers on ONNX Runtime, then find the roofline closest to them.

Fitted are the time an operator costs in any case, the MACs a second that dense layers of each dtype reach, the share
that depthwise layers reach, and the bandwidth; by least squares on the logarithm of the time, so that a layer of 10 µs
counts as much as one of 10 ms. Alignments are tried one by one. Layers that are held out say how well the profile
ranks: 0.987 (float32) and 0.983 (int8) over 30 layers each, on 2 cores of a Zen 4 that others kept busy.
"""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from lighten.runtime.artifact import write_artifact
from lighten.runtime.cpu import this_cpu
from lighten.runtime.device import DeviceProfile, Figure
from lighten.runtime.layer_model import layer_onnx, layer_specs
from lighten.runtime.measure import measure_latency
from lighten.runtime.roofline import Layer, predict_seconds
from lighten.runtime.spec import Array

MAX_MACS = 2e8  # keeps one call below some 20 ms
ALIGNMENTS = (1, 4, 8, 16)


@dataclass(frozen=True)
class Fit:
    """profile, and on n_held_out layers of each dtype that it never saw: rank correlation and median relative error."""

    profile: DeviceProfile
    rank_correlation: Mapping[str, float]
    relative_error: Mapping[str, float]
    n_held_out: int


def fit_this_machine(
    *,
    threads: int,
    dtypes: Sequence[str] = ("float32", "int8"),
    n_fitted: int = 30,
    n_held_out: int = 30,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Time (n_fitted + n_held_out) layers of each dtype; takes about a second each.

    on_progress: called with the number of layers that are done, and of all.

    Raises:
        ArtifactError: a layer cannot be timed.
    """
    layers = [layer for dtype in dtypes for layer in sample_layers(n_fitted + n_held_out, dtype, seed)]
    seconds = time_layers(layers, threads=threads, on_progress=on_progress)
    is_fitted = np.array([i % (n_fitted + n_held_out) < n_fitted for i in range(len(layers))])
    cpu = this_cpu()
    source = f"fitted to {n_fitted} layers of each dtype on {cpu.name}, {threads} threads, ONNX Runtime"
    fitted = [layer for layer, use in zip(layers, is_fitted, strict=True) if use]
    profile = fit_profile(fitted, seconds[is_fitted], name="this-machine", source=source)
    correlation, error = {}, {}
    for dtype in dtypes:
        mine = [i for i, layer in enumerate(layers) if layer.dtype == dtype and not is_fitted[i]]
        predicted = np.array([predict_seconds(layers[i], profile) for i in mine])
        correlation[dtype] = float(stats.spearmanr(predicted, seconds[mine]).statistic)
        error[dtype] = float(np.median(np.abs(predicted / seconds[mine] - 1)))
    return Fit(profile, correlation, error, n_held_out)


def fit_profile(layers: Sequence[Layer], seconds: Array, *, name: str, source: str) -> DeviceProfile:
    """The profile whose roofline is closest to seconds [n], one for each of layers; source goes to every figure."""
    dtypes = list(dict.fromkeys(layer.dtype for layer in layers))
    best: tuple[float, DeviceProfile] | None = None
    for steps in itertools.product(ALIGNMENTS, repeat=len(dtypes)):
        alignment = {dtype: Figure(step, source) for dtype, step in zip(dtypes, steps, strict=True)}

        def build(x: Array, alignment: Mapping[str, Figure] = alignment) -> DeviceProfile:
            overhead, bandwidth, depthwise, *peaks = (Figure(float(value), source) for value in np.exp(x))
            return DeviceProfile(
                name=name,
                description=source,
                peak_macs_per_s=dict(zip(dtypes, peaks, strict=True)),
                efficiency=Figure(1.0, "peaks are fitted as reached"),
                depthwise_efficiency=depthwise,
                memory_bytes_per_s=bandwidth,
                op_overhead_s=overhead,
                channel_alignment=alignment,
            )

        def residuals(x: Array, build: Callable[[Array], DeviceProfile] = build) -> Array:
            profile = build(x)
            return np.log([predict_seconds(layer, profile) for layer in layers]) - np.log(seconds)

        start = np.log([float(seconds.min()) / 2, 1e10, 0.2, *[1e10] * len(dtypes)])
        found = optimize.least_squares(residuals, start, loss="soft_l1", f_scale=0.2)
        if best is None or found.cost < best[0]:
            best = (float(found.cost), build(found.x))
    assert best is not None
    return best[1]


def sample_layers(n: int, dtype: str, seed: int) -> list[Layer]:
    """n different layers such as image networks have: dense and depthwise convolutions and linear ones."""
    rng = np.random.default_rng(seed)
    channels = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    layers: dict[Layer, None] = {}
    while len(layers) < n:
        kind = rng.choice(["conv", "pointwise", "depthwise", "linear"], p=[0.4, 0.25, 0.15, 0.2])
        n_in, n_out = (int(value) for value in rng.choice(channels, 2))
        size = int(rng.choice([4, 7, 8, 14, 16, 28, 32, 56]))
        if kind == "linear":
            layer = Layer(in_channels=4 * n_in, out_channels=4 * n_out, dtype=dtype)
        elif kind == "depthwise":
            layer = Layer(
                in_channels=n_in, out_channels=n_in, groups=n_in, kernel=(3, 3), size=(size, size), dtype=dtype
            )
        else:
            side = 3 if kind == "conv" else 1
            layer = Layer(in_channels=n_in, out_channels=n_out, kernel=(side, side), size=(size, size), dtype=dtype)
        if layer.macs <= MAX_MACS:
            layers[layer] = None
    return list(layers)


def time_layers(layers: Sequence[Layer], *, threads: int, on_progress: Callable[[int, int], None]) -> Array:
    """Median seconds of one call of each layer, [n]; each in a process of its own."""
    seconds = np.zeros(len(layers))
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        for i, layer in enumerate(layers):
            seconds[i] = _time_one(Path(folder) / str(i), layer, threads)
            on_progress(i + 1, len(layers))
    return seconds


def _time_one(folder: Path, layer: Layer, threads: int) -> float:
    inputs, outputs = layer_specs(layer)

    def write_files(to: Path) -> None:
        (to / "model.onnx").write_bytes(layer_onnx(layer))

    write_artifact(
        folder,
        runtime="onnxruntime",
        options={"threads": threads},
        inputs=[inputs],
        outputs=[outputs],
        write_files=write_files,
    )
    x = np.ones([int(size) for size in inputs.shape], inputs.dtype)
    found = measure_latency({"layer": folder}, [x], threads=threads, processes=1, blocks=3, min_block_ms=10.0)
    return found["layer"].median / 1e3
