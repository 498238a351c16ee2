"""MSE: the range whose codes are closest to the values, trading clipped outliers against finer steps.

Source: Nagel et al., arXiv:2106.08295, sec. 3.1 ("MSE based range setting").
Differs: the error is summed over a histogram, so memory is bounded and batches need not be kept. The histogram spans
±limit; a batch that goes beyond doubles the limit as often as needed and merges bins in pairs, which loses nothing but
resolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class MSEConfig:
    """bits: of the codes. bins: of the histogram, a multiple of 4. candidates: ranges tried, from the widest down to
    a third of it."""

    bits: int = 8
    bins: int = 4096
    candidates: int = 100

    def __post_init__(self) -> None:
        if self.bins < 4 or self.bins % 4:
            raise ConfigError(f"bins={self.bins} is not a positive multiple of 4. The default is 4096.")
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits} is outside 2..8.")
        if self.candidates < 1:
            raise ConfigError(f"candidates={self.candidates} is below 1. The default is 100.")


@observer("mse", MSEConfig)
class MSEObserver:
    """Keeps a histogram and the extremes."""

    def __init__(self, config: MSEConfig) -> None:
        self.config = config
        self.limit = 0.0
        self.counts = torch.zeros(config.bins, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        x = x.detach().float().flatten()
        low, high = map(float, x.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest > 0:
            self._widen(largest)
            self.counts += torch.histc(_relative(x, self.limit), self.config.bins, -1, 1).double()

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0, with the least mean squared error among the candidates."""
        if self.limit == 0:
            return 0.0, 0.0
        width = 2 * self.limit / self.config.bins
        centres = torch.arange(self.config.bins, dtype=torch.float64) * width + (width / 2 - self.limit)
        seen = self.counts > 0
        centres, counts = centres[seen].clamp(self.low, self.high), self.counts[seen]
        shares = torch.linspace(1.0, 1 / 3, self.config.candidates, dtype=torch.float64)
        errors = squared_errors(centres, counts, shares * self.low, shares * self.high, self.config.bits)
        best = float(shares[int(errors.argmin())])
        return best * self.low, best * self.high

    def _widen(self, largest: float) -> None:
        if self.limit == 0:
            self.limit = largest
        while largest > self.limit:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged.new_zeros(len(merged) // 2), merged, merged.new_zeros(len(merged) // 2)])
            self.limit *= 2


def _relative(x: Tensor, limit: float) -> Tensor:
    """x / limit in float32, where a limit that was doubled may be beyond float32 itself."""
    return x / limit if limit < 1 else (x / 2) / (limit / 2)


def squared_errors(centres: Tensor, counts: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """[candidates] summed squared errors of centres [n], each counts [n] times, under codes from low to high
    [candidates]. All float64."""
    step = ((high - low) / (2**bits - 1))[:, None]
    lowest = (low[:, None] / step).round()
    codes = (centres / step).round().clamp(lowest, lowest + 2**bits - 1)  # [candidates, n]
    errors: Tensor = (codes * step - centres).square() @ counts
    return errors
