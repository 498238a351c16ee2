"""Entropy: the range at which the distribution of the codes tells most about that of the values.

Source: Migacz, "8-bit Inference with TensorRT", GTC 2017: for each candidate range, the histogram clipped to it (what
lies outside is added to the end bins) is compared by its Kullback-Leibler divergence with itself, summed up into as
many levels as there are codes and spread out again over the bins that were filled.
Differs: both ends are cut at the same magnitude, and no further out than what was seen, so it holds for tensors of
either sign and of both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.observers.histogram import Histogram, check_bins
from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class EntropyConfig:
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


@observer("entropy", EntropyConfig)
class EntropyObserver:
    """Keeps a histogram."""

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config
        self.histogram = Histogram(config.bins)

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        self.histogram.observe(x)

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0, with the least divergence; of equals the widest."""
        seen = self.histogram
        if seen.limit == 0:
            return 0.0, 0.0
        shares = torch.linspace(1.0, 1 / 3, self.config.candidates, dtype=torch.float64).tolist()
        reaches = [share * max(-seen.low, seen.high) for share in shares]
        ranges = [(max(seen.low, -reach), min(seen.high, reach)) for reach in reaches]
        centres = seen.centres()
        found = [divergence(centres, seen.counts, low, high, self.config.bits) for low, high in ranges]
        return ranges[found.index(min(found))]


def divergence(centres: Tensor, counts: Tensor, low: float, high: float, bits: int) -> float:
    """KL(values clipped to [low, high] || their codes), in nats. centres, counts [bins] float64."""
    inside = (centres >= low) & (centres <= high)
    if not counts[inside].any():
        return float("inf")  # nothing but what is clipped: no distribution is left to compare
    kept, values = centres[inside], counts[inside]
    clipped = values.clone()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    step = (high - low) / (2**bits - 1)
    levels = (kept / step).round().long()
    levels -= int(levels.min())
    n = int(levels.max()) + 1
    mass = torch.zeros(n, dtype=torch.float64).index_add_(0, levels, values)
    filled = torch.zeros(n, dtype=torch.float64).index_add_(0, levels, (clipped > 0).double())
    coded = torch.where(clipped > 0, (mass / filled.clamp(min=1))[levels], 0.0)
    p, q = clipped / clipped.sum(), coded / coded.sum()
    # A bin that holds nothing but what was clipped into it has no code to speak of it: the share of one value.
    q = q.clamp(min=1 / float(clipped.sum()))
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())
