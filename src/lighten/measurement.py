"""Measurement: the one object for a result. Every figure in a report comes from one of these."""

from dataclasses import asdict, dataclass
from typing import Any

from lighten.metric import Interval


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one call on a batch, in milliseconds, after warm-up, in a process of its own.

    Of a device that is described: predicted, runtime says so and which it is, and threads is None.
    """

    median: float
    p90: float
    runtime: str
    threads: int | None
    batch: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """metric with its interval over n samples; size_bytes of the files as shipped; macs of one sample."""

    metric_name: str
    metric: Interval
    n: int
    latency_ms: Latency
    size_bytes: int
    n_params: int
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """The shape that result.json holds."""
        return {
            "metric": {
                "name": self.metric_name,
                "value": self.metric.value,
                "ci95": [self.metric.low, self.metric.high],
                "n": self.n,
            },
            "latency_ms": asdict(self.latency_ms),
            "size_bytes": self.size_bytes,
            "n_params": self.n_params,
            "macs": self.macs,
        }
