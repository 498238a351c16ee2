"""Choose: which of the measured candidates a budget allows, and which of those is best.

A candidate is *admissible* when its drop on the selection data and its time and size are within the budget. Of many
candidates the one that looks best is in part the luckiest, so by default it is not the estimate of the drop that has to
be within the budget but the upper end of its one-sided 95 % interval. Where the data are too few for that to tell
anything, the estimate decides, and the result says so and how many samples would do. Among those that are within a
tenth of the best, the most compressed is taken: timing cannot rank them reliably, and the same seed shall give the same
plan.
"""

import math
from dataclasses import dataclass, replace

from lighten.errors import ConfigError
from lighten.search.candidate import Candidate

MINIMIZE = ("latency", "size")
ACCEPT = ("interval", "point")
AS_GOOD = 1.1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """max_drop: of the metric, in its own units. minimize: "latency" or "size". The limits are optional.

    accept: what of a drop has to be within max_drop, the end of its one-sided 95 % "interval" or the "point" estimate.
    """

    max_drop: float
    minimize: str = "latency"
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    accept: str = "interval"

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"max_drop={self.max_drop} must be 0 or more. 0.01 allows one point of accuracy.")
        if self.minimize not in MINIMIZE:
            raise ConfigError(f"minimize='{self.minimize}' is unknown. Use {' or '.join(MINIMIZE)}.")
        if self.accept not in ACCEPT:
            raise ConfigError(f"accept='{self.accept}' is unknown. Use {' or '.join(ACCEPT)}.")
        for name in ("max_latency_ms", "max_size_bytes"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name}={limit} must be above 0.")

    @property
    def narrow_to(self) -> float | None:
        """The drop up to which layers get fewer bits: where bytes count, since nothing becomes faster by it."""
        return self.max_drop if self.minimize == "size" or self.max_size_bytes is not None else None


def within(candidate: Candidate, budget: Budget) -> bool:
    """Whether everything measured of the candidate is inside the budget."""
    return (
        candidate.drop is not None
        and candidate.latency is not None
        and judged_drop(candidate, budget) <= budget.max_drop
        and (budget.max_latency_ms is None or candidate.latency.median <= budget.max_latency_ms)
        and (budget.max_size_bytes is None or candidate.size_bytes <= budget.max_size_bytes)
    )


def judged_drop(candidate: Candidate, budget: Budget) -> float:
    """The figure that has to be within the budget's max_drop."""
    assert candidate.drop is not None
    return candidate.drop_bound if budget.accept == "interval" else candidate.drop.value


def judgeable(candidates: list[Candidate], budget: Budget) -> tuple[Budget, str]:
    """budget, and "" where the data can tell; else budget by the point estimate, and a sentence that says why.

    The data can tell if the most certain of the candidates is known to half of max_drop: then one that drops by half
    of it is admissible. What is uncertain shrinks with the square root of the number of samples.
    """
    tried = [c for c in candidates if c.drop is not None and c.scores is not None]
    if budget.accept == "point" or not tried:
        return budget, ""
    surest = min(tried, key=lambda c: c.drop_bound - c.drop.value if c.drop else math.inf)
    assert surest.drop is not None
    assert surest.scores is not None
    margin, allowed = surest.drop_bound - surest.drop.value, budget.max_drop / 2
    if margin <= allowed:
        return budget, ""
    n = surest.scores.n
    enough = f"about {math.ceil(n * (margin / allowed) ** 2):,} would do" if allowed else "no number of them could"
    why = f"{n:,} selection samples are too few to tell a drop of {budget.max_drop:g} for certain ({enough})"
    return replace(budget, accept="point"), f"{why}: judged by the estimate."


def admissible(found: list[Candidate], candidates: list[Candidate], budget: Budget) -> list[Candidate]:
    """Those of found whose drop is within the budget, as far as the data of all candidates can tell."""
    budget, _ = judgeable(candidates, budget)
    return [c for c in found if c.drop is not None and judged_drop(c, budget) <= budget.max_drop]


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
    misses = [judged_drop(candidate, budget) - budget.max_drop]
    if budget.max_latency_ms is not None:
        misses.append(candidate.latency.median / budget.max_latency_ms - 1)
    if budget.max_size_bytes is not None:
        misses.append(candidate.size_bytes / budget.max_size_bytes - 1)
    return max(0.0, *misses)
