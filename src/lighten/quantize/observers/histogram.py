"""A histogram that grows: what observers that look at more than extremes keep.

It spans ±limit; a batch that goes beyond doubles the limit as often as needed and merges bins in pairs, which loses
nothing but resolution. Memory does not grow with the data.
"""

import torch
from torch import Tensor

from lighten.errors import ConfigError


def check_bins(bins: int) -> None:
    """Raises ConfigError: bins cannot be merged in pairs on either side of 0."""
    if bins < 4 or bins % 4:
        raise ConfigError(f"bins={bins} is not a positive multiple of 4. The default is 4096.")


class Histogram:
    """counts [bins] float64 over ±limit, and the exact extremes low <= 0 <= high. limit is 0 until a value is not."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.limit = 0.0
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        x = x.detach().float().flatten()
        low, high = map(float, x.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest > 0:
            self._widen(largest)
            self.counts += torch.histc(_relative(x, self.limit), self.bins, -1, 1).double()

    def centres(self) -> Tensor:
        """[bins] float64 the middle of each bin, no further out than the extremes."""
        width = 2 * self.limit / self.bins
        centres = torch.arange(self.bins, dtype=torch.float64) * width + (width / 2 - self.limit)
        return centres.clamp(self.low, self.high)

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
