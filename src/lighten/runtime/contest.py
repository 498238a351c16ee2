"""A contest: of several artifacts that should compute the same, find the fastest that really does.

Two rounds. In the first every candidate gets one process and a short look, and shows its outputs; those that fail, or
whose outputs differ from the expected ones by more than rounding, are out. In the second the fastest few are timed side
by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lighten.errors import ArtifactError, LightenError
from lighten.runtime.measure import LatencySample, Ratio, measure_latency, ratio_interval
from lighten.runtime.spec import Array

FIRST_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An artifact on a number of threads; the same artifact may stand with several."""

    name: str
    path: Path
    threads: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """difference: from the expected outputs, root mean square over theirs. sample: of the last round it was in.

    refused: why it is out, or "". slowdown: how many times longer than the winner it takes, for finalists.
    """

    candidate: Candidate
    difference: float | None = None
    sample: LatencySample | None = None
    refused: str = ""
    slowdown: Ratio | None = None


@dataclass(frozen=True)
class Contest:
    """winner; trials of every candidate, in the order given."""

    winner: Trial
    trials: tuple[Trial, ...]


def contest(
    candidates: Sequence[Candidate],
    inputs: Sequence[Array],
    expected: Sequence[Array],
    *,
    tolerance: float = 1e-3,
    finalists: int = 3,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Contest:
    """Time candidates on inputs; expected: the outputs that all of them should give.

    tolerance: the largest difference that still counts as rounding. on_progress: called with the name of a candidate
    before its first round.

    Raises:
        ArtifactError: none of them works and agrees; the message says why, one by one.
    """
    trials = []
    for candidate in candidates:
        on_progress(candidate.name)
        trials.append(_first_round(candidate, inputs, expected, tolerance))
    able = sorted((trial for trial in trials if not trial.refused), key=_median)
    if not able:
        reasons = "; ".join(f"{trial.candidate.name}: {trial.refused}" for trial in trials)
        raise ArtifactError(f"None of {len(trials)} candidates runs and agrees with the model. {reasons}")
    final = _second_round(able[:finalists], inputs)
    by_name = {trial.candidate.name: trial for trial in final}
    return Contest(final[0], tuple(by_name.get(trial.candidate.name, trial) for trial in trials))


def difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Root mean square of found - expected, relative to that of expected; infinite where shapes or NaNs differ."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    pairs = [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(found, expected, strict=True)]
    same = [(x == y) | (np.isnan(x) & np.isnan(y)) for x, y in pairs]  # infinities and NaNs agree with themselves
    with np.errstate(invalid="ignore"):
        off = np.concatenate([np.where(ok, 0.0, x - y).ravel() for ok, (x, y) in zip(same, pairs, strict=True)])
    size = np.concatenate([np.where(np.isfinite(y), y, 0.0).ravel() for _, y in pairs])
    error, scale = float(np.sqrt(np.mean(off**2))), float(np.sqrt(np.mean(size**2)))
    if not np.isfinite(error):
        return float("inf")
    return error / scale if scale > 0 else error


def _first_round(candidate: Candidate, inputs: Sequence[Array], expected: Sequence[Array], tolerance: float) -> Trial:
    trial = Trial(candidate=candidate)
    try:
        (sample,) = measure_latency(
            {candidate.name: candidate.path}, inputs, threads=candidate.threads, processes=1, blocks=FIRST_BLOCKS
        ).values()
    except LightenError as error:
        return replace(trial, refused=str(error))
    off = difference(sample.outputs, expected)
    refused = "" if off <= tolerance else f"its outputs differ by {off:.3g} of their size; {tolerance:g} is rounding"
    return replace(trial, sample=sample, difference=off, refused=refused)


def _second_round(trials: Sequence[Trial], inputs: Sequence[Array]) -> list[Trial]:
    samples = measure_latency(
        {trial.candidate.name: trial.candidate.path for trial in trials},
        inputs,
        threads={trial.candidate.name: trial.candidate.threads for trial in trials},
    )
    timed = sorted((replace(trial, sample=samples[trial.candidate.name]) for trial in trials), key=_median)
    best = timed[0].sample
    assert best is not None
    return [replace(trial, slowdown=ratio_interval(samples[trial.candidate.name], best)) for trial in timed]


def _median(trial: Trial) -> float:
    assert trial.sample is not None
    return trial.sample.median
