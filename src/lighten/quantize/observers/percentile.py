"""Percentile: the range that holds a given share of all values, and leaves the same number out at either end.

Source: Wu et al., "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, sec. 3.3.
Differs: read from a histogram, so it is off by at most one bin; both ends are cut, not the magnitude.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.observers.histogram import Histogram, check_bins
from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class PercentileConfig:
    """percentile: of the values that are kept, above 50 up to 100. bins: of the histogram, a multiple of 4."""

    percentile: float = 99.99
    bins: int = 4096

    def __post_init__(self) -> None:
        check_bins(self.bins)
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile={self.percentile} is outside 50..100. The default is 99.99.")


@observer("percentile", PercentileConfig)
class PercentileObserver:
    """Keeps a histogram."""

    def __init__(self, config: PercentileConfig) -> None:
        self.config = config
        self.histogram = Histogram(config.bins)

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        self.histogram.observe(x)

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0: the outer edges of the bins in which the cuts fall."""
        seen = self.histogram
        if seen.limit == 0:
            return 0.0, 0.0
        total = seen.counts.cumsum(0)
        left_out = float(total[-1]) * (1 - self.config.percentile / 100) / 2
        edges = torch.linspace(-seen.limit, seen.limit, self.config.bins + 1, dtype=torch.float64)
        first = int((total > left_out).nonzero()[0])
        last = int((total >= float(total[-1]) - left_out).nonzero()[0])
        low, high = max(seen.low, float(edges[first])), min(seen.high, float(edges[last + 1]))
        return min(low, 0.0), max(high, 0.0)
