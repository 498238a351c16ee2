"""Schedules: by which steps a pruning ratio is reached, as plain numbers.

`one-shot`; `iterative:n`, where each of n steps prunes the same share of what is left; `cubic:n`, which goes fast while
much is redundant and slowly at the end; `gradual:n`, the same ratios, but reached in the course of one training.
Sources: Han et al., arXiv:1506.02626, for iterating; Zhu & Gupta, "To Prune, or Not to Prune", arXiv:1710.01878, eq. 1,
for cubic and gradual, here from 0 to the final ratio.
"""

import re

from lighten.errors import ConfigError

KINDS = "one-shot, iterative:n, cubic:n, gradual:n"


def ratios(schedule: str, final_ratio: float) -> list[float]:
    """The ratio after each step, rising, the last one final_ratio.

    Raises:
        ConfigError: an unknown schedule, or final_ratio outside [0, 1).
    """
    if not 0 <= final_ratio < 1:
        raise ConfigError(f"ratio={final_ratio} is outside [0, 1). 0.5 prunes half.")
    if schedule == "one-shot":
        return [final_ratio]
    found = re.fullmatch(r"(iterative|cubic|gradual):(\d+)", schedule)
    if found is None or int(found[2]) < 1:
        raise ConfigError(f"schedule='{schedule}' is unknown. Use one of {KINDS}, for example cubic:5.")
    n = int(found[2])
    if found[1] == "iterative":
        steps = [1 - (1 - final_ratio) ** (step / n) for step in range(1, n + 1)]
    else:
        steps = [final_ratio * (1 - (1 - step / n) ** 3) for step in range(1, n + 1)]
    return [*steps[:-1], final_ratio]  # free of rounding


def rises_within_training(schedule: str) -> bool:
    """Whether training goes on while the ratio rises, instead of starting anew after each step."""
    return schedule.startswith("gradual:")
