"""Figures as people read them. Every function takes what result.json holds, None and NaN included, and never raises.

Ranges and signs are written with the true minus sign and "to", so that "−0.003 to 0.007" cannot be misread.
"""

import math
from typing import Any

MISSING = "–"


def number(value: Any) -> float | None:
    """The finite number that value is, or None. No measurement lies outside 1e-300..1e300, where arithmetic breaks."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:  # NaN is not below
        return None
    return float(value) if abs(value) > 1e-300 else 0.0


def plain(value: Any) -> str:
    """A metric or a drop: four decimals, or two significant digits where four decimals would show zeros."""
    x = number(value)
    if x is None:
        return MISSING
    text = f"{x:.2g}" if 0 < abs(x) < 1e-3 else f"{x:,.4f}" if abs(x) < 100 else f"{x:,.1f}"
    return text.replace("-", "−")


def interval(ends: Any) -> str:
    """The ends of a 95 % interval, [low, high]."""
    low, high = pair(ends)
    return MISSING if low is None or high is None else f"{plain(low)} to {plain(high)}"


def pair(ends: Any) -> tuple[float | None, float | None]:
    """The two ends of an interval, each None where it is not a finite number."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None, None
    return number(ends[0]), number(ends[1])


def milliseconds(value: Any) -> str:
    """A latency given in milliseconds. Always in this unit: two units in one column are misread."""
    x = number(value)
    return MISSING if x is None else f"{_digits(x)} ms"


def size(value: Any) -> str:
    """Bytes, in decimal units as file managers show them."""
    return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))


def count(value: Any) -> str:
    """A count of parameters or operations."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"))


def seconds(value: Any) -> str:
    """A duration given in seconds."""
    x = number(value)
    if x is None:
        return MISSING
    return f"{_digits(x)} s" if x < 120 else f"{x / 60:.0f} min"


def times(ratio: Any) -> str:
    """A ratio of at least 1, as "2.0×"; one below 1 is turned over, and the words beside it say so."""
    x = number(ratio)
    if x is None or x <= 0:
        return MISSING
    x = max(x, 1 / x)
    return f"{x:.2f}×" if x < 1.95 else f"{x:.1f}×" if x < 100 else f"{x:,.0f}×"


def ratio(before: Any, after: Any) -> float | None:
    """How many times smaller after is than before."""
    a, b = number(before), number(after)
    return None if a is None or b is None or a <= 0 or b <= 0 else a / b


def change(gain: Any, better: str, worse: str) -> str:
    """A ratio in words: "2.0× faster", "1.30× slower", "unchanged"."""
    x = number(gain)
    if x is None or x <= 0:
        return MISSING
    if abs(x - 1) < 0.005:
        return "unchanged"
    return f"{times(x)} {better if x > 1 else worse}"


def _digits(x: float) -> str:
    """Three significant digits, without an exponent."""
    x = float(f"{x:.3g}")  # first, so that 9.999 is 10.0 and not 10.00
    if x == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:,.{min(decimals, 6)}f}"


def _scaled(value: Any, step: int, units: tuple[str, ...]) -> str:
    x = number(value)
    if x is None:
        return MISSING
    rank = 0
    x = float(f"{x:.3g}") if abs(x) >= step else x  # first, so that 999,999 is 1.00 M and not 1,000 k
    while abs(x) >= step and rank < len(units) - 1:
        x, rank = x / step, rank + 1
    return f"{x:,.0f} {units[0]}".strip() if rank == 0 else f"{_digits(x)} {units[rank]}"
