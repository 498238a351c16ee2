"""Clock: how long candidates take, measured on the target, or predicted for a device that is described and not here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule
from lighten.prune.layers import find_layers
from lighten.quantize.assignment import parse_assignment
from lighten.runtime.device import DeviceProfile
from lighten.runtime.measure import LatencySample, Ratio, ratio_interval
from lighten.runtime.roofline import predict_seconds
from lighten.runtime.spec import Array
from lighten.search.candidate import Candidate
from lighten.search.cost import layer_shapes
from lighten.search.workers import Workers


class MeasuringClock:
    """Measures on workers' target. inputs: by name, of a call."""

    def __init__(self, workers: Workers, inputs: Mapping[str, Array], threads: int) -> None:
        self.workers, self.inputs, self.threads = workers, inputs, threads

    def times(self, candidates: Mapping[str, Candidate], processes: int = 5) -> dict[str, LatencySample]:
        """Of those that have an artifact, by the same keys."""
        paths: dict[str, Path] = {key: c.path for key, c in candidates.items() if c.path is not None}
        return self.workers.latency(paths, self.inputs, threads=self.threads, processes=processes)

    def ratio(self, before: LatencySample, after: LatencySample, seed: int) -> Ratio:
        """How many times longer before takes than after."""
        return ratio_interval(before, after, seed=seed)


class DescribedClock:
    """Reads what was predicted; nothing is measured."""

    def times(self, candidates: Mapping[str, Candidate], processes: int = 5) -> dict[str, LatencySample]:
        """One number is the whole sample."""
        found = {key: c.predicted_ms for key, c in candidates.items() if c.path is not None}
        return {key: LatencySample(blocks_ms=((np.array([ms]),),)) for key, ms in found.items() if ms is not None}

    def ratio(self, before: LatencySample, after: LatencySample, seed: int) -> Ratio:
        """Without an interval: how far a prediction is off is not known."""
        value = before.median / after.median
        return Ratio(value, value, value)


Clock = MeasuringClock | DescribedClock


def dtype_of(scheme: str | None) -> str:
    """What a candidate of that scheme computes in: float32 also where its weights alone are integers."""
    if scheme is None:
        return "float32"
    bits = [s.activation_bits for s in parse_assignment(scheme).schemes]
    return "float32" if None in bits else "int8"


def computes_in(device: DeviceProfile) -> str:
    """What the original computes in there: float32, or where the device has none, what it has first."""
    return "float32" if "float32" in device.peak_macs_per_s else next(iter(device.peak_macs_per_s))


def schemes_for(device: DeviceProfile, schemes: Sequence[str | None]) -> tuple[str | None, ...]:
    """Those of schemes that device has the arithmetic for.

    Raises:
        ConfigError: there are none.
    """
    able = tuple(scheme for scheme in schemes if dtype_of(scheme) in device.peak_macs_per_s)
    if not able:
        names = ", ".join(scheme or "float" for scheme in schemes)
        raise ConfigError(
            f"'{device.name}' computes in {', '.join(device.peak_macs_per_s)}, and none of {names} does. Take another "
            "profile, or add to its peak_macs_per_s."
        )
    return able


def predicted_ms(
    device: DeviceProfile, model: CapturedModule, example_inputs: tuple[Any, ...], dtype: str, batch: int
) -> float:
    """Milliseconds of model's convolutions and linear layers there, zeros computed like any numbers.

    Raises:
        ConfigError: device does not support dtype.
    """
    shapes = layer_shapes(model, find_layers(model)[0], example_inputs, batch)
    return 1e3 * sum(predict_seconds(replace(s, dtype=dtype), device) for of_layer in shapes for s in of_layer)
