"""Choose: which of the measured candidates a budget allows, and which of those is best.

A candidate is *admissible* when its drop on the selection data and its time and size are within the budget. Among
those that are within a tenth of the best, the most compressed is taken: timing cannot rank them reliably, and the
same seed shall give the same plan.
"""

import math
from dataclasses import dataclass

from lighten.errors import ConfigError
from lighten.search.sweep import Candidate

MINIMIZE = ("latency", "size")
AS_GOOD = 1.1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """max_drop: of the metric, in its own units. minimize: "latency" or "size". The limits are optional."""

    max_drop: float
    minimize: str = "latency"
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"max_drop={self.max_drop} must be 0 or more. 0.01 allows one point of accuracy.")
        if self.minimize not in MINIMIZE:
            raise ConfigError(f"minimize='{self.minimize}' is unknown. Use {' or '.join(MINIMIZE)}.")
        for name in ("max_latency_ms", "max_size_bytes"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name}={limit} must be above 0.")


def within(candidate: Candidate, budget: Budget) -> bool:
    """Whether everything measured of the candidate is inside the budget."""
    return (
        candidate.drop is not None
        and candidate.latency is not None
        and candidate.drop.value <= budget.max_drop
        and (budget.max_latency_ms is None or candidate.latency.median <= budget.max_latency_ms)
        and (budget.max_size_bytes is None or candidate.size_bytes <= budget.max_size_bytes)
    )


def objective(candidate: Candidate, budget: Budget) -> float:
    """What is to be small: milliseconds, or bytes."""
    assert candidate.latency is not None
    return candidate.latency.median if budget.minimize == "latency" else float(candidate.size_bytes)


def choose(candidates: list[Candidate], budget: Budget, baseline: float) -> Candidate | None:
    """The best admissible candidate, or None if none is better than baseline, the original's objective."""
    good = [c for c in candidates if within(c, budget) and objective(c, budget) < baseline]
    if not good:
        return None
    best = min(objective(c, budget) for c in good)
    return min((c for c in good if objective(c, budget) <= AS_GOOD * best), key=_bits_moved)


def nearest(candidates: list[Candidate], budget: Budget, baseline: float) -> Candidate | None:
    """The measured candidate that misses the budget by least while being better than baseline, None if none is."""
    better = [c for c in candidates if c.drop and c.latency and objective(c, budget) < baseline]
    return min(better, key=lambda c: (_excess(c, budget), _bits_moved(c)), default=None)


def _bits_moved(candidate: Candidate) -> tuple[float, float, int]:
    """A static order of compression: arithmetic × width, then bytes."""
    bits = 32 if candidate.scheme is None else 8
    return candidate.macs * bits, candidate.n_params * bits, candidate.size_bytes


def _excess(candidate: Candidate, budget: Budget) -> float:
    """By how much the candidate misses its worst limit, relative to the limit (a drop: in units of the metric)."""
    assert candidate.drop is not None
    assert candidate.latency is not None
    misses = [candidate.drop.value - budget.max_drop]
    if budget.max_latency_ms is not None:
        misses.append(candidate.latency.median / budget.max_latency_ms - 1)
    if budget.max_size_bytes is not None:
        misses.append(candidate.size_bytes / budget.max_size_bytes - 1)
    return max(0.0, *misses)
