"""From result.json and the plan to the rows of the page's tables and the points of its plots.

Nothing here fails on a missing or unknown key: a report on a run that went wrong is worth most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lighten.plan import LayerPlan, Plan
from lighten.report import words
from lighten.report.plots import Point

Json = dict[str, Any]
FLOAT = "float"
WITH_ZEROS = " with zeros"


@dataclass(frozen=True)
class Comparison:
    """A line of the before/after table; the notes are shown small under their figure."""

    what: str
    before: str
    after: str
    change: str
    before_note: str = ""
    after_note: str = ""
    change_note: str = ""


@dataclass(frozen=True)
class Layer:
    """What was done to one layer. share: of channels kept, in percent, or None where pruning did not look."""

    name: str
    channels: str
    kept: str
    share: float | None
    numbers: str
    note: str


@dataclass(frozen=True)
class Trial:
    """One version that was tried, as its row shows it. series: its number format's place in the legend."""

    name: str
    series: int
    scheme: str
    metric: str
    metric_ci: str
    drop: str
    drop_ci: str
    median: str
    p90: str
    speed: str
    size: str
    params: str
    macs: str
    verdict: str
    chosen: bool
    note: str


def at(data: Any, *path: str) -> Any:
    """data[path[0]][path[1]]…, or None where something on the way is missing."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def comparisons(result: Json) -> list[Comparison]:
    """The before/after table."""
    before, after = at(result, "baseline"), at(result, "compressed")
    speed_ci = words.pair(result.get("speedup_ci95"))
    speed_note = "" if None in speed_ci else f"95 %: {words.times(speed_ci[0])} to {words.times(speed_ci[1])}"
    if speed_ci[0] is not None and speed_ci[0] < 1:  # times() turns a slow-down over, which an interval must not do
        speed_note = f"95 %: {words.plain(speed_ci[0])} to {words.plain(speed_ci[1])} of the speed"
    if at(result, "device", "name") is not None:
        speed_note = "predicted: how far it is off is not known"
    speed = words.change(speedup(result), "faster", "slower")
    p90 = words.ratio(at(before, "latency_ms", "p90"), at(after, "latency_ms", "p90"))
    drop = result.get("drop")
    return [
        Comparison(
            metric_name(result),
            words.plain(at(before, "metric", "value")),
            words.plain(at(after, "metric", "value")),
            f"drop {words.plain(at(drop, 'value'))}",
            _metric_note(before),
            _metric_note(after),
            f"95 %: {words.interval(at(drop, 'ci95'))}",
        ),
        Comparison(
            "Latency, median",
            words.milliseconds(at(before, "latency_ms", "median")),
            words.milliseconds(at(after, "latency_ms", "median")),
            speed,
            _runtime_note(before),
            _runtime_note(after),
            speed_note,
        ),
        Comparison(
            "Latency, 90th percentile",
            words.milliseconds(at(before, "latency_ms", "p90")),
            words.milliseconds(at(after, "latency_ms", "p90")),
            words.change(p90, "faster", "slower"),
        ),
        _smaller("Size on disk", before, after, "size_bytes", words.size),
        _smaller("Parameters", before, after, "n_params", words.count, "fewer", "more"),
        _smaller("MACs a sample", before, after, "macs", words.count, "fewer", "more"),
    ]


def layers(plan: Plan) -> list[Layer]:
    """Every layer of the plan in its order, then those that were left alone without an entry of their own."""
    unlisted = {name: LayerPlan() for name in plan.skipped if name not in plan.layers}
    return [_layer(name, layer, plan) for name, layer in {**plan.layers, **unlisted}.items()]


def schemes(result: Json) -> list[str]:
    """The number formats among the candidates, in order of appearance: the legend."""
    return list(dict.fromkeys(_scheme(c) for c in candidates(result)))


def trials(result: Json) -> list[Trial]:
    """Every candidate, in the order in which it was tried."""
    legend = schemes(result)
    return [_trial(c, legend.index(_scheme(c)), result) for c in candidates(result)]


def points(result: Json, *cost: str) -> list[Point]:
    """What can be drawn over a cost, given as its path in a measurement; a version without a figure is left out.

    The trials stand at their drop on selection data, what was shipped at its drop on holdout data, the baseline at 0.
    """
    legend = schemes(result)
    found = [
        _point(c, c, cost, legend.index(_scheme(c)), "chosen" if c.get("chosen") else "trial")
        for c in candidates(result)
    ]
    found.append(_point(at(result, "baseline"), {"drop": {"value": 0.0}}, cost, 0, "baseline"))
    found.append(_point(at(result, "compressed"), result, cost, 0, "holdout"))
    return [p for p in found if p is not None]


def candidates(result: Json) -> list[Json]:
    """The candidates that are mappings; anything else in that place is not ours."""
    found = result.get("candidates")
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def metric_name(result: Json) -> str:
    """What the task is judged by."""
    return str(at(result, "baseline", "metric", "name") or "metric")


def samples(*measured: Any) -> str:
    """How many samples the first measurement that says so was scored on, or nothing."""
    counts = (words.number(at(m, "metric", "n")) for m in measured)
    return next((f"{n:,.0f}" for n in counts if n is not None), "")


def speedup(result: Json) -> float | None:
    """The measured speed-up, or the ratio of the medians where none was recorded."""
    ratio = words.ratio(
        at(result, "baseline", "latency_ms", "median"), at(result, "compressed", "latency_ms", "median")
    )
    recorded = words.number(result.get("speedup"))
    return ratio if recorded is None else recorded


def _smaller(
    what: str,
    before: Any,
    after: Any,
    key: str,
    show: Callable[[Any], str],
    better: str = "smaller",
    worse: str = "larger",
) -> Comparison:
    change = words.change(words.ratio(at(before, key), at(after, key)), better, worse)
    return Comparison(what, show(at(before, key)), show(at(after, key)), change)


def _metric_note(measured: Any) -> str:
    n = samples(measured)
    return f"95 %: {words.interval(at(measured, 'metric', 'ci95'))}" + (f", n = {n}" if n else "")


def _runtime_note(measured: Any) -> str:
    latency = at(measured, "latency_ms") or {}
    parts = (("runtime", "{}"), ("threads", "{} threads"), ("batch", "batch {}"))
    return ", ".join(form.format(at(latency, key)) for key, form in parts if at(latency, key) is not None)


def _layer(name: str, layer: LayerPlan, plan: Plan) -> Layer:
    share = 100 * layer.kept / layer.channels if layer.channels and layer.kept is not None else None
    left_alone = name in plan.skipped
    return Layer(
        name=name,
        channels=words.MISSING if layer.channels is None else f"{layer.channels:,}",
        kept=words.MISSING if layer.kept is None else f"{layer.kept:,}",
        share=share,
        numbers=(layer.scheme or FLOAT) + (f", {layer.sparsity:.0%} zeros" if layer.sparsity else ""),
        note=f"left alone: {plan.skipped[name]}" if left_alone else "",
    )


def _scheme(candidate: Json) -> str:
    return str(candidate.get("scheme") or FLOAT) + (WITH_ZEROS if candidate.get("sparsity") else "")


def _trial(candidate: Json, series: int, result: Json) -> Trial:
    latency = at(candidate, "latency_ms")
    speed = words.ratio(at(result, "baseline", "latency_ms", "median"), at(latency, "median"))
    recorded = words.number(candidate.get("speedup"))
    return Trial(
        name=str(candidate.get("name") or "unnamed"),
        series=series,
        scheme=_scheme(candidate),
        metric=words.plain(at(candidate, "metric", "value")),
        metric_ci=words.interval(at(candidate, "metric", "ci95")),
        drop=words.plain(at(candidate, "drop", "value")),
        drop_ci=words.interval(at(candidate, "drop", "ci95")),
        median=words.milliseconds(at(latency, "median")),
        p90=words.milliseconds(at(latency, "p90")),
        speed=words.change(speed if recorded is None else recorded, "faster", "slower"),
        size=words.size(candidate.get("size_bytes")),
        params=words.count(candidate.get("n_params")),
        macs=words.count(candidate.get("macs")),
        verdict=_verdict(candidate),
        chosen=bool(candidate.get("chosen")),
        note=str(candidate.get("note") or ""),
    )


def _verdict(candidate: Json) -> str:
    if candidate.get("chosen"):
        return "chosen"
    if candidate.get("within_budget") is True:
        return "within budget"
    return "over budget" if words.number(at(candidate, "drop", "value")) is not None else "not measured"


def _point(measured: Any, dropped: Any, cost: tuple[str, ...], series: int, role: str) -> Point | None:
    x, y = words.number(at(measured, *cost)), words.number(at(dropped, "drop", "value"))
    if x is None or y is None or x <= 0:
        return None
    low, high = words.pair(at(dropped, "drop", "ci95"))
    return Point(x, y, y if low is None else low, y if high is None else high, series, role)
