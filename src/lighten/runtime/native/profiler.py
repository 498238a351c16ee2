"""Profiler: what a call of the native engine spends on each layer, as it stands in the network.

A layer alone does not take what it takes in a network: its input lies in the cache, or does not; the other threads are
at it already, or have to be woken. So compiled code can keep the CPU's count of cycles whenever a part of an operation
is done (emit/network.py). An operation lasts from when all parts of the one before it were done to when its own are:
what threads wait for each other is counted, and the sum is what the engine takes in all.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lighten.runtime.native.packed import Array
from lighten.runtime.native.program import Conv, Program


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of a call. layers: by name, "" being what comes before the first one; the whole is longer than their
    sum by what the engine does not do."""

    whole: float
    layers: dict[str, float]

    @property
    def rest(self) -> float:
        """What the engine does not do: the call itself, and parts of other runtimes."""
        return max(0.0, self.whole - sum(self.layers.values()))


class Profiler:
    """Engines tell it what they spend on what. Not thread-safe."""

    def __init__(self) -> None:
        self._calls: list[list[tuple[Program, Array, float]]] = []
        self._ns: list[tuple[int, int]] = []

    def call(self, engine: Callable[[], object]) -> None:
        """Call what engines are part of that have this profiler."""
        self._calls.append([])
        began = time.perf_counter_ns()
        engine()
        self._ns.append((began, time.perf_counter_ns()))

    def told(self, program: Program, stamps: Array, times: float) -> None:
        """stamps: see Network; zeros where nothing was computed, and everywhere after this. times: they stand for."""
        self._calls[-1].append((program, stamps.copy(), times))
        stamps[:] = 0

    def read(self) -> LayerTimes | None:
        """The medians over all calls. None where fewer than two told, from which it is known what a cycle takes."""
        spent: dict[str, list[float]] = {}
        ends: list[tuple[float, int]] = []
        for of_call, (_, ended_ns) in zip(self._calls, self._ns, strict=True):
            told = [each for each in of_call if each[1][0].any()]
            if len(told) < len(of_call) or not told:
                continue  # another thread did the caller's share
            ends.append((float(told[-1][1].max()), ended_ns))
            layers: dict[str, float] = {}
            for program, stamps, times in told:
                _add(layers, program, stamps, times)
            for name, cycles in layers.items():
                spent.setdefault(name, []).append(cycles)
        if len(ends) < 2:
            return None
        (first, first_ns), (last, last_ns) = ends[0], ends[-1]
        a_cycle_ms = (last_ns - first_ns) / (last - first) / 1e6
        whole = statistics.median(ended - began for began, ended in self._ns) / 1e6
        return LayerTimes(whole, {name: statistics.median(each) * a_cycle_ms for name, each in spent.items()})

    def reset(self) -> None:
        """Forget all calls."""
        self._calls, self._ns = [], []


def _add(layers: dict[str, float], program: Program, stamps: Array, times: float) -> None:
    """Add the cycles of each layer; an operation that is none counts to the one before it."""
    began = int(stamps[0, stamps[0] > 0].min())
    done = np.maximum.accumulate(stamps[1:].max(1))
    spent, layer = np.diff(done, prepend=began) * times, ""
    for op, cycles in zip((*program.ops, None), spent.tolist(), strict=True):
        layer = (op.layer if isinstance(op, Conv) else "") or layer
        layers[layer] = layers.get(layer, 0.0) + cycles
