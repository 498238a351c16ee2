"""MSE: the range whose codes are closest to the values, trading clipped outliers against finer steps.

Source: Nagel et al., arXiv:2106.08295, sec. 3.1 ("MSE based range setting").
Differs: the error is summed over a histogram, so memory is bounded and batches need not be kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.observers.histogram import Histogram, check_bins
from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class MSEConfig:
    """bits: of the codes. bins: of the histogram, a multiple of 4. candidates: ranges tried, from the widest down to
    a third of it."""

    bits: int = 8
    bins: int = 4096
    candidates: int = 100

    def __post_init__(self) -> None:
        check_bins(self.bins)
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits} is outside 2..8.")
        if self.candidates < 1:
            raise ConfigError(f"candidates={self.candidates} is below 1. The default is 100.")


@observer("mse", MSEConfig)
class MSEObserver:
    """Keeps a histogram."""

    def __init__(self, config: MSEConfig) -> None:
        self.config = config
        self.histogram = Histogram(config.bins)

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        self.histogram.observe(x)

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0, with the least mean squared error among the candidates."""
        seen = self.histogram
        if seen.limit == 0:
            return 0.0, 0.0
        filled = seen.counts > 0
        shares = torch.linspace(1.0, 1 / 3, self.config.candidates, dtype=torch.float64)
        errors = squared_errors(
            seen.centres()[filled], seen.counts[filled], shares * seen.low, shares * seen.high, self.config.bits
        )
        best = float(shares[int(errors.argmin())])
        return best * seen.low, best * seen.high


def squared_errors(centres: Tensor, counts: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """[candidates] summed squared errors of centres [n], each counts [n] times, under codes from low to high
    [candidates]. All float64."""
    step = ((high - low) / (2**bits - 1))[:, None]
    lowest = (low[:, None] / step).round()
    codes = (centres / step).round().clamp(lowest, lowest + 2**bits - 1)  # [candidates, n]
    errors: Tensor = (codes * step - centres).square() @ counts
    return errors
