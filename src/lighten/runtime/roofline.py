"""The roofline model: what a layer should cost on a device that is described and not here.

    time = op_overhead + max(padded MACs / (peak · efficiency), bytes moved / bandwidth)

Source: Williams, Waterman & Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52 (2009). Differs: a fixed time an operator, channels padded to the device's alignment, and one level of cache.
What comes out is a prediction, and every name and dictionary here says so.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lighten.errors import ConfigError
from lighten.runtime.device import BYTES_PER_ELEMENT, DeviceProfile


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution: kernel and output size as (height, width). A linear layer is one of 1×1 on size (1, 1)."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    batch: int = 1
    dtype: str = "float32"
    name: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        positions = self.batch * math.prod(self.size)
        return positions * self.out_channels * (self.in_channels // self.groups) * math.prod(self.kernel)

    @property
    def n_weights(self) -> int:
        """Without the bias."""
        return self.out_channels * (self.in_channels // self.groups) * math.prod(self.kernel)

    @property
    def n_bytes(self) -> int:
        """Weights, input and output, each moved once."""
        outputs = self.batch * self.out_channels * math.prod(self.size)
        inputs = self.batch * self.in_channels * math.prod(self.size) * self.stride**2
        return (self.n_weights + inputs + outputs) * BYTES_PER_ELEMENT[self.dtype]

    @property
    def is_depthwise(self) -> bool:
        """Every input channel on its own."""
        return self.groups > 1 and self.groups == self.in_channels


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted, never measured: milliseconds of each layer, in order, on the device of that name."""

    device: str
    layers: tuple[Layer, ...]
    layers_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        """One layer after another."""
        return sum(self.layers_ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that says what it is."""
        rows = [{**asdict(layer), "predicted_ms": ms} for layer, ms in zip(self.layers, self.layers_ms, strict=True)]
        return {"kind": "predicted", "device": self.device, "predicted_ms": self.total_ms, "layers": rows}


def predict(layers: Iterable[Layer], device: DeviceProfile) -> Prediction:
    """The roofline time of each layer.

    Raises:
        ConfigError: device does not support the dtype of a layer.
    """
    layers = tuple(layers)
    return Prediction(
        device=device.name,
        layers=layers,
        layers_ms=tuple(1e3 * predict_seconds(layer, device) for layer in layers),
    )


def predict_seconds(layer: Layer, device: DeviceProfile) -> float:
    """See predict."""
    if layer.dtype not in device.peak_macs_per_s:
        raise ConfigError(
            f"'{device.name}' does not support {layer.dtype}, which layer '{layer.name}' computes in. It supports "
            f"{', '.join(device.peak_macs_per_s)}."
        )
    share = device.depthwise_efficiency if layer.is_depthwise else device.efficiency
    compute_s = padded_macs(layer, device) / (device.peak_macs_per_s[layer.dtype].value * share.value)
    fits = device.cache_bytes is not None and layer.n_bytes <= device.cache_bytes.value
    bandwidth = device.cache_bytes_per_s if fits else device.memory_bytes_per_s
    assert bandwidth is not None
    return device.op_overhead_s.value + max(compute_s, layer.n_bytes / bandwidth.value)


def padded_macs(layer: Layer, device: DeviceProfile) -> float:
    """Outputs fill whole vectors; inputs do where there is at least one (narrower ones have kernels of their own)."""
    figure = device.channel_alignment.get(layer.dtype)
    step = 1 if figure is None else int(figure.value)
    factor = _padding(layer.out_channels, step)
    if layer.groups == 1 and layer.in_channels >= step:
        factor *= _padding(layer.in_channels, step)
    return layer.macs * factor


def _padding(n: int, step: int) -> float:
    return math.ceil(n / step) * step / n
