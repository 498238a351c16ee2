"""Cost: how long each layer takes with fewer channels or with zeros, timed one layer at a time on the real runtime.

A layer alone does not take quite what it takes in a network, so only the ratios of these times are used: the network
itself is timed whole, and what its layers do not account for is taken to stay. Times are kept on disk, by CPU, runtime,
version and threads.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from lighten.cache import recall, remember
from lighten.errors import ConfigError
from lighten.export.lower import lower
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, capture, get_tensor
from lighten.graph.shapes import node_sizes
from lighten.prune.layers import CONVOLUTIONS, WeightLayer
from lighten.runtime.artifact import write_artifact
from lighten.runtime.backends import backend
from lighten.runtime.cpu import this_cpu
from lighten.runtime.layer_model import layer_onnx, layer_specs
from lighten.runtime.roofline import Layer
from lighten.runtime.series import Series

VERSION = 3  # to be raised when the native engine takes another time for a layer
# Where the native engine is timed. Between shares of channels, and beyond, times are lines in logarithms, since it has
# no cliffs but the width of a vector; between densities they are lines, a fixed part and one that goes with the zeros.
CHANNEL_GRID = (1.0, 0.5, 0.125)
DENSITIES = (1.0, 0.1)
LEAST = 0.5  # of the time at the lowest density, which no fewer weights can get below by extrapolation
BLOCK_ROWS = 4


@dataclass(frozen=True)
class Timed:
    """What is timed: a layer, and the share of its weights that is not zero."""

    layer: Layer
    density: float = 1.0


class LayerTimes:
    """Milliseconds of single layers on a runtime with so many threads; asked for together, because a process starts."""

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime, self.threads = runtime, threads
        about = {"runtime": runtime, "version": backend(runtime).describe().version, "threads": threads}
        text = json.dumps({"format": VERSION, "cpu": this_cpu().name, **about}, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        kept = recall("layer-times", self._digest)
        self._ms: dict[str, float] = kept if isinstance(kept, dict) else {}

    def measure(self, wanted: Iterable[Timed], on_progress: Callable[[float], None] = lambda share: None) -> None:
        """Time those of wanted that are not known yet.

        Raises:
            ArtifactError, CaptureError: the runtime cannot run one of them.
        """
        missing = [timed for timed in dict.fromkeys(wanted) if _key(timed) not in self._ms]
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix="lighten-") as scratch, Series(self.threads) as series:
            for i, timed in enumerate(missing):
                folder = Path(scratch) / str(i)
                _write(folder, timed, self.runtime)
                self._ms[_key(timed)] = series.milliseconds(folder, timed.layer.batch)
                on_progress((i + 1) / len(missing))
        remember("layer-times", self._digest, self._ms)

    def ms(self, timed: Timed) -> float:
        """Of one that was measured."""
        return self._ms[_key(timed)]


def layer_times(
    runtime: str, threads: int, wanted: Sequence[Timed], tell: Callable[[float, str], None] = lambda share, doing: None
) -> LayerTimes:
    """Those of wanted, on this machine.

    Raises:
        ArtifactError, CaptureError: the runtime cannot run one of them.
    """
    times = LayerTimes(runtime, threads)
    times.measure(wanted, lambda share: tell(share, f"timing layers on {runtime}"))
    return times


def layer_shapes(
    captured: CapturedModule, layers: Sequence[WeightLayer], example_inputs: tuple[Any, ...], batch: int
) -> list[list[Layer]]:
    """For each layer what is computed with its weight on a batch of that size, once a place where it stands."""
    sizes = node_sizes(captured, example_inputs)
    traced = next((s.shape[0] for n, s in sizes.items() if n.op == "placeholder" and len(s.shape)), 1)
    grown = batch / traced if captured.batch_is_dynamic else 1.0
    shapes = [[_shape(captured, layer, node, sizes) for node in layer.nodes] for layer in layers]
    return [[replace(s, batch=max(1, round(s.batch * grown))) for s in of_layer] for of_layer in shapes]


def shrunk(layer: Layer, inputs: float, outputs: float) -> Layer:
    """layer with these shares of its channels, at least one each. Of a depthwise layer inputs
    and outputs are the same channels, so either share is that of both."""
    n_in, n_out = (
        max(1, round(n * share)) for n, share in ((layer.in_channels, inputs), (layer.out_channels, outputs))
    )
    if layer.groups == 1:
        return replace(layer, in_channels=n_in, out_channels=n_out)
    if layer.is_depthwise:
        n = max(1, round(layer.in_channels * min(inputs, outputs)))
        return replace(layer, in_channels=n, out_channels=n * (layer.out_channels // layer.in_channels), groups=n)
    groups = math.gcd(math.gcd(n_in, n_out), layer.groups)
    return replace(layer, in_channels=n_in, out_channels=n_out, groups=groups)


def exact(layer: Layer, inputs: Sequence[float], outputs: Sequence[float]) -> list[Timed]:
    """What has to be timed for a table over these shares of channels, row by row."""
    return [Timed(shrunk(layer, i, o)) for i in inputs for o in outputs]


def grid(layer: Layer, inputs: Sequence[float], outputs: Sequence[float], densities: Sequence[float]) -> list[Timed]:
    """What has to be timed so that interpolated() can fill a table over these; row by row."""
    axes = _axes(inputs, outputs, densities)
    return [Timed(shrunk(layer, i, o), d) for i in axes[0] for o in axes[1] for d in axes[2]]


def interpolated(
    times: LayerTimes, layer: Layer, inputs: Sequence[float], outputs: Sequence[float], densities: Sequence[float]
) -> NDArray[np.float64]:
    """[inputs, outputs, densities] milliseconds, where the grid of these was measured."""
    axes = _axes(inputs, outputs, densities)
    known = np.array([times.ms(timed) for timed in grid(layer, inputs, outputs, densities)])
    known = known.reshape([len(axis) for axis in axes])
    for axis, values in enumerate((inputs, outputs)):
        known = _along(known, axis, axes[axis], values)
    if len(axes[2]) == 1:
        return np.repeat(known, len(densities), 2)
    (high, low), (at_high, at_low) = DENSITIES, np.moveaxis(known, 2, 0)
    slope = (at_high - at_low) / (high - low)
    table = at_low[..., None] + slope[..., None] * (np.array(densities) - low)
    floored: NDArray[np.float64] = np.maximum(table, LEAST * at_low[..., None])
    return floored


def _axes(inputs: Sequence[float], outputs: Sequence[float], densities: Sequence[float]) -> list[tuple[float, ...]]:
    """The grid; an axis that does not vary needs none."""
    points = (CHANNEL_GRID, CHANNEL_GRID, DENSITIES)
    return [p if len(values) > 1 else (1.0,) for values, p in zip((inputs, outputs, densities), points, strict=True)]


def _along(
    known: NDArray[np.float64], axis: int, points: Sequence[float], values: Sequence[float]
) -> NDArray[np.float64]:
    """Lines in logarithms through neighbouring points of the axis, which fall, at values."""
    if len(points) == 1:
        return np.repeat(known, len(values), axis)
    at, heights = np.log(points), np.log(np.moveaxis(known, axis, 0))
    lines = []
    for value in np.log(values):
        i = min(int(np.sum(at[1:-1] > value)), len(points) - 2)
        place = (value - at[i]) / (at[i + 1] - at[i])
        lines.append(heights[i] + (heights[i + 1] - heights[i]) * place)
    found: NDArray[np.float64] = np.exp(np.moveaxis(np.stack(lines), 0, axis))
    return found


def _shape(captured: CapturedModule, layer: WeightLayer, node: fx.Node, sizes: dict[fx.Node, Any]) -> Layer:
    weight, given = get_tensor(captured, layer.parameter), arguments(node)
    read, made = sizes[given["input"]].shape, sizes[node].shape
    if node.target not in CONVOLUTIONS:
        rows = math.prod(read[:-1])
        return Layer(in_channels=weight.shape[1], out_channels=weight.shape[0], batch=int(rows))
    spatial = CONVOLUTIONS[node.target]
    stride = given["stride"]
    strides = (
        [*stride] * (spatial if len(stride) == 1 else 1) if isinstance(stride, (list, tuple)) else [stride] * spatial
    )
    return Layer(
        in_channels=weight.shape[1] * given["groups"],
        out_channels=weight.shape[0],
        kernel=_plane(weight.shape[2:]),
        size=_plane(made[2:]),
        stride=int(strides[-1]),
        groups=given["groups"],
        batch=int(read[0]),
    )


def _plane(sizes: Sequence[int]) -> tuple[int, int]:
    """One or three axes as two; of three, the first two are one."""
    return (int(math.prod(sizes[:-1])), int(sizes[-1]))


def _write(folder: Path, timed: Timed, runtime: str) -> None:
    if runtime == "native":
        module, x = _module(timed)
        lowered = lower(capture(module, (x,)), (x,), runtime)
        write_artifact(folder, runtime=runtime, options={}, inputs=lowered.inputs, outputs=lowered.outputs,
                       write_files=lowered.write_files)  # fmt: skip
        return
    if timed.density != 1:
        raise ConfigError(f"'{runtime}' computes with zeros as with any number; only native leaves them out.")

    def write_files(to: Path) -> None:
        (to / "model.onnx").write_bytes(layer_onnx(timed.layer))

    inputs, outputs = layer_specs(timed.layer)
    write_artifact(folder, runtime=runtime, options={}, inputs=[inputs], outputs=[outputs], write_files=write_files)


def _module(timed: Timed) -> tuple[nn.Module, Tensor]:
    """The layer with random weights and a ReLU behind it, and an input."""
    layer, make = timed.layer, torch.Generator().manual_seed(0)
    if layer.kernel == (1, 1) and layer.size == (1, 1):
        module: nn.Module = nn.Linear(layer.in_channels, layer.out_channels)
        x = torch.randn(layer.batch, layer.in_channels, generator=make)
    else:
        padding = (layer.kernel[0] // 2, layer.kernel[1] // 2)
        module = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel, layer.stride, padding, groups=layer.groups
        )
        size = [side * layer.stride for side in layer.size]
        x = torch.randn(layer.batch, layer.in_channels, *size, generator=make)
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows = BLOCK_ROWS if layer.out_channels % BLOCK_ROWS == 0 else 1
    drawn = torch.rand(layer.out_channels // rows, weight[0].numel(), generator=make)
    n_kept = max(1, round(timed.density * drawn.numel()))
    kept = drawn >= drawn.flatten().kthvalue(drawn.numel() - n_kept + 1).values
    with torch.no_grad():
        weight.normal_(generator=make).mul_(kept.repeat_interleave(rows, 0).view_as(weight))
    return nn.Sequential(module, nn.ReLU()).eval(), x


def _key(timed: Timed) -> str:
    about = {name: value for name, value in asdict(timed.layer).items() if name != "name"}
    return json.dumps([about, round(timed.density, 4)], sort_keys=True)
