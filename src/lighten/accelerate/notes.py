"""What accelerate found, as plain data: the artifact's notes["accelerate"], which the command line draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lighten.accelerate.drafts import Draft
from lighten.runtime.contest import Contest, Trial
from lighten.runtime.measure import LatencySample, Ratio, mean_ratio_interval
from lighten.runtime.throughput import Crew, Throughput

if TYPE_CHECKING:
    from lighten.runtime.native.retune import Choice

REASON_LENGTH = 300


def latency_notes(found: Contest, refused: Sequence[Trial], plain: str, drafts: Mapping[Path, Draft]) -> dict[str, Any]:
    """Of found and what was refused before it: all trials, the winner's times, its speed-up over the trial named plain,
    and how steady the machine was; times in milliseconds a call."""
    winner = found.winner
    assert winner.sample is not None
    finalists = {t.candidate.name: t.sample for t in found.trials if t.slowdown is not None and t.sample is not None}
    return {
        "winner": winner.candidate.name,
        "difference": winner.difference,
        "latency_ms": {"mean": winner.sample.mean, "median": winner.sample.median, "p90": winner.sample.p90},
        "speedup": _speedup(finalists, plain, winner.candidate.name),
        "steadiness": _steadiness(found),
        "trials": [_entry(trial, drafts) for trial in (*found.trials, *refused)],
    }


def throughput_notes(
    trials: Sequence[Trial],
    winner: Trial,
    plain: str,
    drafts: Mapping[Path, Draft],
    crews: Mapping[str, Crew],
    samples: Mapping[str, LatencySample],
    scaling: Sequence[Throughput],
    batch: int,
) -> dict[str, Any]:
    """As latency_notes, with samples a second of the finalists' crews, and of the winner's with fewer workers.

    samples: milliseconds a call of a whole crew that is busy, for finalists.
    """

    def entry(trial: Trial) -> dict[str, Any]:
        name = trial.candidate.name
        workers = None if trial.refused else crews[name].workers
        rate = batch * 1e3 / samples[name].median if name in samples else None
        return {**_entry(trial, drafts), "workers": workers, "samples_per_s": rate}

    name = winner.candidate.name
    return {
        "winner": name,
        "difference": winner.difference,
        "workers": crews[name].workers,
        "samples_per_s": batch * 1e3 / samples[name].median,
        "efficiency": scaling[-1].efficiency,
        "scaling": [asdict(point) for point in scaling],
        "speedup": _speedup(samples, plain, name),
        "trials": [entry(trial) for trial in trials],
    }


def blocks_notes(choices: "Sequence[Choice]") -> dict[str, Any]:
    """products: how many of the native engine were timed with blocks of every size; none where it cannot win. changed:
    those that are quicker in others than exported, by place in the program, with milliseconds of either alone."""
    changed = [
        {"place": c.place, "block": c.block, "best": c.best, "block_ms": c.ms[c.block], "best_ms": c.ms[c.best]}
        for c in choices
        if c.best != c.block
    ]
    return {"products": len(choices), "changed": changed}


def _entry(trial: Trial, drafts: Mapping[Path, Draft]) -> dict[str, Any]:
    draft, sample = drafts.get(trial.candidate.path), trial.sample
    return {
        "name": trial.candidate.name,
        "way": trial.candidate.name if draft is None else draft.name,
        "runtime": None if draft is None else draft.runtime,
        "options": {} if draft is None else dict(draft.options),
        "threads": trial.candidate.threads or None,
        "mean_ms": None if sample is None else sample.mean,
        "median_ms": None if sample is None else sample.median,
        "p90_ms": None if sample is None else sample.p90,
        "cold_start_ms": None if sample is None else sample.start_up.cold_start_ms,
        "peak_bytes": None if sample is None else sample.peak_bytes,
        "difference": trial.difference if trial.difference is None or np.isfinite(trial.difference) else None,
        "slowdown": _interval(trial.slowdown),
        "round_ms": list(trial.round_ms),
        "refused": " ".join(trial.refused.split())[:REASON_LENGTH],
    }


def _steadiness(found: Contest) -> dict[str, Any]:
    """span_ms: the least and the most of the times of the finalist that moved most, the look and every round."""
    moved = max((t for t in found.trials if t.round_ms), key=lambda trial: max(trial.round_ms) / min(trial.round_ms))
    return {
        "rounds": found.rounds,
        "is_steady": found.is_steady,
        "moved_most": moved.candidate.name,
        "span_ms": [min(moved.round_ms), max(moved.round_ms)],
    }


def _speedup(samples: Mapping[str, LatencySample], plain: str, winner: str) -> dict[str, Any] | None:
    """None where plain was refused."""
    if plain not in samples:
        return None
    ratio = mean_ratio_interval(samples[plain], samples[winner])
    found = _interval(ratio)
    assert found is not None
    return {"over": plain, **found, "is_different": ratio.is_different}


def _interval(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {"value": ratio.value, "ci95": [x if np.isfinite(x) else None for x in (ratio.low, ratio.high)]}
