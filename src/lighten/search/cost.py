"""Cost: how long each layer takes with fewer channels, timed one layer at a time on a runtime that reads ONNX.

A layer alone does not take quite what it takes in a network, so only the ratios of these times are used: the network
itself is timed whole, and what its layers do not account for is taken to stay. Times are kept on disk, by CPU, runtime,
version and threads.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import fx

from lighten.cache import recall, remember
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.shapes import node_sizes
from lighten.prune.layers import CONVOLUTIONS, WeightLayer
from lighten.runtime.artifact import write_artifact
from lighten.runtime.backends import backend
from lighten.runtime.cpu import this_cpu
from lighten.runtime.layer_model import layer_onnx, layer_specs
from lighten.runtime.roofline import Layer
from lighten.runtime.series import Series

VERSION = 4


class LayerTimes:
    """Milliseconds of single layers on a runtime with so many threads; asked for together, because a process starts."""

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime, self.threads = runtime, threads
        about = {"runtime": runtime, "version": backend(runtime).describe().version, "threads": threads}
        text = json.dumps({"format": VERSION, "cpu": this_cpu().name, **about}, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        kept = recall("layer-times", self._digest)
        self._ms: dict[str, float] = kept if isinstance(kept, dict) else {}

    def measure(self, wanted: Iterable[Layer], on_progress: Callable[[float], None] = lambda share: None) -> None:
        """Time those of wanted that are not known yet.

        Raises:
            ArtifactError, CaptureError: the runtime cannot run one of them.
        """
        missing = [layer for layer in dict.fromkeys(wanted) if _key(layer) not in self._ms]
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix="lighten-") as scratch, Series(self.threads) as series:
            for i, layer in enumerate(missing):
                folder = Path(scratch) / str(i)
                _write(folder, layer, self.runtime)
                self._ms[_key(layer)] = series.milliseconds(folder, layer.batch)
                on_progress((i + 1) / len(missing))
        remember("layer-times", self._digest, self._ms)

    def ms(self, layer: Layer) -> float:
        """Of one that was measured."""
        return self._ms[_key(layer)]


def layer_times(
    runtime: str, threads: int, wanted: Sequence[Layer], tell: Callable[[float, str], None] = lambda share, doing: None
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


def exact(layer: Layer, inputs: Sequence[float], outputs: Sequence[float]) -> list[Layer]:
    """What has to be timed for a table over these shares of channels, row by row."""
    return [shrunk(layer, i, o) for i in inputs for o in outputs]


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


def _write(folder: Path, layer: Layer, runtime: str) -> None:
    def write_files(to: Path) -> None:
        (to / "model.onnx").write_bytes(layer_onnx(layer))

    inputs, outputs = layer_specs(layer)
    write_artifact(folder, runtime=runtime, options={}, inputs=[inputs], outputs=[outputs], write_files=write_files)


def _key(layer: Layer) -> str:
    return json.dumps({name: value for name, value in asdict(layer).items() if name != "name"}, sort_keys=True)
