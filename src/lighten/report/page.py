"""The page: a template filled with rows and pictures, and written so that a reader never meets half of it."""

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from lighten.errors import ArtifactError
from lighten.plan import Plan
from lighten.report import plots, rows, words


def render(result: dict[str, Any], plan: Plan) -> str:
    """A complete HTML page for the content of result.json. It loads nothing and runs nothing.

    Every name and note is escaped. Missing figures are shown as a dash, unknown keys are ignored, and the same input
    gives the same page.
    """
    budget = words.number(rows.at(result, "budget", "max_drop"))
    return _template().render(
        result=result,
        plan=plan,
        words=words,
        at=rows.at,
        metric=rows.metric_name(result),
        budget=budget,
        speedup=rows.speedup(result),
        size_ratio=_size_ratio(result),
        n_selection=rows.samples(*rows.candidates(result)),
        n_holdout=rows.samples(rows.at(result, "compressed")),
        doubt=_doubt(result, budget),
        comparisons=rows.comparisons(result),
        layers=rows.layers(plan),
        trials=rows.trials(result),
        legend=[(name, plots.mark(i)) for i, name in enumerate(rows.schemes(result))],
        roles={role: plots.mark(role=role) for role in ("chosen", "holdout", "baseline")},
        pictures=_pictures(result, budget),
        recipe=_recipe(plan),
        environment=_environment(result),
    )


def write_report(result: dict[str, Any], plan: Plan, path: Path) -> None:
    """Write the page to path in one step: another reader sees the old page or the new one.

    Raises:
        ArtifactError: path cannot be written.
    """
    page = render(result, plan)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A name may hold a lone surrogate (JSON allows it); UTF-8 does not, and a page must not fail on a name.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ArtifactError(f"Cannot write the report '{path}': {error.strerror or error}.") from error


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def _size_ratio(result: dict[str, Any]) -> float | None:
    recorded = words.number(result.get("size_ratio"))
    before, after = rows.at(result, "baseline", "size_bytes"), rows.at(result, "compressed", "size_bytes")
    return words.ratio(before, after) if recorded is None else recorded


def _doubt(result: dict[str, Any], budget: float | None) -> str:
    """What the samples at hand cannot settle, in one sentence, or nothing."""
    drop, high = words.number(rows.at(result, "drop", "value")), words.pair(rows.at(result, "drop", "ci95"))[1]
    n = words.number(rows.at(result, "compressed", "metric", "n"))
    if budget is None or drop is None or high is None or n is None or not drop <= budget < high:
        return ""
    return (
        f"With {n:,.0f} holdout samples, a drop as large as {words.plain(high)} cannot be ruled out at 95 % "
        f"confidence; that is more than the budget of {words.plain(budget)}. More samples would settle it."
    )


def _pictures(result: dict[str, Any], budget: float | None) -> list[dict[str, Any]]:
    """One plot a cost, each drawn for a wide and for a narrow page; the cost that was minimized comes first."""
    metric = rows.metric_name(result)
    costs = [
        ("latency", plots.LATENCY, rows.points(result, "latency_ms", "median")),
        ("size", plots.SIZE, rows.points(result, "size_bytes")),
    ]
    if rows.at(result, "budget", "minimize") in ("size", "size_bytes"):
        costs.reverse()
    return [
        {
            "cost": cost,
            "wide": plots.scatter(points, axis, metric=metric, budget=budget, narrow=False),
            "narrow": plots.scatter(points, axis, metric=metric, budget=budget, narrow=True),
        }
        for cost, axis, points in costs
        if points
    ]


def _recipe(plan: Plan) -> dict[str, str]:
    """The plan's settings for the whole model, without what was not set."""
    settings = {
        "Channels to prune": f"{100 * plan.ratio:g} %" if plan.ratio else None,
        "Channels ranked by": plan.importance,
        "Ranked over": plan.scope,
        "Fine-tuning": f"{plan.epochs} epochs" if plan.epochs else None,
        "Number format": plan.scheme or rows.FLOAT,
        "Activation ranges": plan.observer,
        "Bits of a weight": plan.weight_bits,
        "Not more, because": plan.weight_bits_because,
        "Runtime": plan.runtime,
        "Threads": plan.threads,
        "Seed": plan.seed,
    }
    return {name: str(value) for name, value in settings.items() if value is not None}


def _environment(result: dict[str, Any]) -> dict[str, str]:
    found = result.get("environment")
    known = {"cpu": "CPU", "os": "OS", "runtime_version": "runtime"}
    return {known.get(str(k), str(k)): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
