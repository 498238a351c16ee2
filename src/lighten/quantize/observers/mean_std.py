"""Mean ± k standard deviations, no further out than what was seen: a range from two sums.

Source: the text this project starts from standardizes what it rounds, which is this range; see
lighten.quantize.methods.standardized.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lighten.errors import ConfigError
from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class MeanStdConfig:
    """k: standard deviations from the mean to the ends of the range."""

    k: float = 4.0

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ConfigError(f"k={self.k} is not above 0. The default is 4.")


@observer("mean-std", MeanStdConfig)
class MeanStdObserver:
    """Keeps the number of values, their mean, their summed squared deviation from it, and the extremes."""

    def __init__(self, config: MeanStdConfig) -> None:
        self.config = config
        self.n, self.mean, self.deviation = 0, 0.0, 0.0
        self.low, self.high = 0.0, 0.0

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        x = x.detach().double().flatten()
        if not x.numel():
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        # Two samples joined (Chan et al. 1979): sums of squares would lose what is small beside the mean.
        n, mean = self.n + x.numel(), float(x.mean())
        apart = mean - self.mean
        self.deviation += float((x - mean).square().sum()) + apart * apart * self.n * x.numel() / n
        self.mean += apart * x.numel() / n
        self.n = n

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0."""
        if not self.n:
            return 0.0, 0.0
        reach = self.config.k * math.sqrt(self.deviation / self.n)
        low, high = max(self.low, self.mean - reach), min(self.high, self.mean + reach)
        return min(low, 0.0), max(high, 0.0)
