"""Outcome: what a finished search found, as result.json holds it and as a sentence says it."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lighten.measurement import Measurement
from lighten.metric import Interval, Scores
from lighten.report.words import change
from lighten.runtime.artifact import read_artifact
from lighten.runtime.backends import backend
from lighten.runtime.cpu import this_cpu
from lighten.runtime.device import DeviceProfile
from lighten.runtime.measure import LatencySample, Ratio
from lighten.runtime.native.parts import sentences
from lighten.search.candidate import Candidate
from lighten.search.choose import Budget, judged_drop, within
from lighten.search.config import SearchConfig


def measurement(candidate: Candidate, scores: Scores, sample: LatencySample, config: SearchConfig) -> Measurement:
    """Everything measured of one candidate; scores: on the data that the figure is for."""
    assert candidate.plan is not None
    if config.device is None:
        latency = sample.to_latency(candidate.plan.runtime, config.threads, config.batch)
    else:
        latency = sample.to_latency(f"{config.device.name}, predicted", None, config.batch)
    return Measurement(
        metric_name=scores.metric.name,
        metric=scores.interval,
        n=scores.n,
        latency_ms=latency,
        size_bytes=candidate.size_bytes,
        n_params=candidate.n_params,
        macs=candidate.macs,
    )


def describe(candidate: Candidate, budget: Budget, chosen: bool, config: SearchConfig) -> dict[str, Any]:
    """One trial; its figures are left out where it failed, and note says why."""
    about: dict[str, Any] = {
        "name": candidate.name,
        "ratio": candidate.ratio,
        "scheme": candidate.scheme,
        "sparsity": candidate.sparsity,
        "epochs": candidate.epochs,
        "predicted_ms": candidate.predicted_ms,
        "within_budget": within(candidate, budget),
        "chosen": chosen,
        "note": candidate.note,
    }
    if candidate.scores is not None and candidate.latency is not None and candidate.drop is not None:
        about |= measurement(candidate, candidate.scores, candidate.latency, config).to_dict()
        about["drop"] = interval_data(candidate.drop)
    return about


def describe_budget(budget: Budget) -> dict[str, Any]:
    """The limits that were set."""
    return {key: value for key, value in asdict(budget).items() if value is not None}


def interval_data(interval: Interval) -> dict[str, Any]:
    """As result.json holds it."""
    return {"value": interval.value, "ci95": [interval.low, interval.high]}


def environment(runtime: str, threads: int) -> dict[str, Any]:
    """What the figures depend on besides the model."""
    cpu = this_cpu()
    return {
        "cpu": cpu.name,
        "cores": cpu.cores,
        "instructions": [name for name in ("avx2", "avx512", "vnni", "amx", "neon_dotprod") if getattr(cpu, name)],
        "threads": threads,
        "runtime": runtime,
        "runtime_version": backend(runtime).describe().version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
    }


def parts(artifact: Path) -> dict[str, str]:
    """Which part of its model runs where, and why, beside environment(); nothing of a model that is not in parts."""
    lines = sentences(read_artifact(artifact).notes)
    return {"parts": ". ".join(lines)} if lines else {}


def verdict(
    budget: Budget,
    original: Candidate,
    chosen: Candidate,
    *,
    admissible: bool,
    accepted: bool,
    drop: Interval,
    ratio: Ratio,
    device: DeviceProfile | None = None,
) -> str:
    """What came out, in a sentence or two.

    admissible: chosen met the budget on selection data. accepted: it did on holdout data too. ratio: the original's
    time over chosen's. device: whose time it is, where it is predicted.
    """
    better = "faster" if budget.minimize == "latency" else "smaller"
    if chosen is original:
        return (
            f"Nothing that was tried is {better} than the original. The artifact is the original, lowered losslessly."
        )
    assert original.scores is not None
    is_sure = ratio.low > 1 or ratio.high < 1
    pace = change(ratio.value, "faster", "slower") if is_sure else "no faster for certain"
    pace = pace if device is None else f"predicted to be {pace} on {device.name}"
    size = change(original.size_bytes / chosen.size_bytes, "smaller", "larger")
    size = "of unchanged size" if size == "unchanged" else size
    what = f"{pace} and {size}, {original.scores.metric.name} drop {drop.value:.4f} on holdout data"
    if accepted:
        return f"{chosen.name}: {what}, within the budget of {budget.max_drop:g}."
    if admissible:
        return (
            f"Not accepted: {chosen.name} met the budget of {budget.max_drop:g} on selection data, "
            f"but measured again it is {what}."
        )
    return f"Nothing within the budget (drop {budget.max_drop:g}) was {better}. The nearest is {chosen.name}: {what}."


def shortfall(candidates: list[Candidate], budget: Budget) -> str:
    """Which of the limits none of the candidates meets, or which do not go together, with what comes nearest."""
    measured = [c for c in candidates if c.drop is not None and c.latency is not None]
    if not measured:
        return ""
    limits: dict[str, tuple[float | None, Callable[[Any], float], str]] = {
        "max_drop": (budget.max_drop, lambda c: judged_drop(c, budget), "the least drop is {:.4f}"),
        "max_latency_ms": (budget.max_latency_ms, lambda c: c.latency.median, "the fastest takes {:.4g} ms"),
        "max_size_bytes": (budget.max_size_bytes, lambda c: c.size_bytes, "the smallest has {:,.0f} bytes"),
    }
    given = {name: (limit, figure, words) for name, (limit, figure, words) in limits.items() if limit is not None}
    alone = {name: min(map(figure, measured)) for name, (_, figure, _) in given.items()}
    missed = [name for name, (limit, _, _) in given.items() if alone[name] > limit]
    if missed:
        said = "; ".join(f"{name}={given[name][0]:g}: {given[name][2].format(alone[name])}" for name in missed)
        return f"Of {len(measured)} candidates none meets {said}."
    if len(given) < 2:
        return ""
    parts = []
    for name, (limit, figure, words) in given.items():
        others = [c for c in measured if all(f(c) <= x for n, (x, f, _) in given.items() if n != name)]
        if others:
            nearest = words.format(min(map(figure, others)))
            parts.append(f"{name}={limit:g} cannot be met with the others, where {nearest}")
    return "Each limit can be met, but not all at once: " + "; ".join(parts or ["any two exclude each other"]) + "."
