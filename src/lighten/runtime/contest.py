"""A contest: of several artifacts that should compute the same, find the fastest that really does.

Two rounds. In the first every candidate gets one process and a short look, and shows its outputs; those that fail, or
whose outputs differ from the expected ones by more than rounding, are out. In the second the fastest few are timed side
by side. Candidates stand in order of preference: of those that are as good as the fastest, the first one wins.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lighten.errors import ArtifactError, LightenError
from lighten.runtime.measure import LatencySample, Ratio, measure_latency, ratio_interval
from lighten.runtime.spec import Array

FIRST_BLOCKS = 3
FINALISTS = 3
HOPELESS = 2.0  # times the fastest of the first round; on a busy machine one process may be 1.6 times off (see measure)
# A tie is what the interval cannot tell apart, and no more than this by the estimate: a wide interval is not a licence.
TIE = 1.03


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

    @property
    def median(self) -> float:
        """In milliseconds a call; infinite where nothing was timed."""
        return float("inf") if self.sample is None else self.sample.median


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
    finalists: int = FINALISTS,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Contest:
    """Time candidates on inputs; expected: the outputs that all of them should give. Both rounds, see look and decide.

    Raises:
        ArtifactError: none of them works and agrees; the message says why, one by one.
    """
    trials = look(candidates, inputs, expected, tolerance=tolerance, on_progress=on_progress)
    return decide(trials, inputs, finalists=finalists)


def look(
    candidates: Sequence[Candidate],
    inputs: Sequence[Array],
    expected: Sequence[Array],
    *,
    tolerance: float,
    on_progress: Callable[[str], None] = lambda name: None,
) -> list[Trial]:
    """The first round. tolerance: the largest difference that still counts as rounding. on_progress: called with the
    name of each candidate before its turn."""
    trials = []
    for candidate in candidates:
        on_progress(candidate.name)
        trials.append(_first_round(candidate, inputs, expected, tolerance))
    return trials


def decide(
    trials: Sequence[Trial],
    inputs: Sequence[Array],
    *,
    finalists: int = FINALISTS,
    always: Collection[str] = (),
) -> Contest:
    """The second round, among the fastest `finalists` of the first that are not hopeless.

    always: names that are timed in it too, if they were not refused, so that the winner can be compared with them.

    Raises:
        ArtifactError: all trials were refused.
    """
    able = must_have_some(trials)
    fastest = able[0].median
    chosen = [
        trial
        for place, trial in enumerate(able)
        if trial.candidate.name in always or (place < finalists and trial.median <= HOPELESS * fastest)
    ]
    chosen.sort(key=trials.index)
    samples = measure_latency(
        {trial.candidate.name: trial.candidate.path for trial in chosen},
        inputs,
        threads={trial.candidate.name: trial.candidate.threads for trial in chosen},
    )
    winner = first_of_the_best(samples)
    final = {
        trial.candidate.name: replace(
            trial,
            sample=samples[trial.candidate.name],
            slowdown=ratio_interval(samples[trial.candidate.name], samples[winner]),
        )
        for trial in chosen
    }
    return Contest(final[winner], tuple(final.get(trial.candidate.name, trial) for trial in trials))


def must_have_some(trials: Sequence[Trial]) -> list[Trial]:
    """Those that were not refused, the fastest first.

    Raises:
        ArtifactError: there is none.
    """
    able = sorted((trial for trial in trials if not trial.refused), key=lambda trial: trial.median)
    if not able:
        reasons = "; ".join(f"{trial.candidate.name}: {trial.refused}" for trial in trials)
        raise ArtifactError(f"None of {len(trials)} candidates runs and agrees with the model. {reasons}")
    return able


def first_of_the_best(samples: Mapping[str, LatencySample]) -> str:
    """The first of samples that is not worse than the fastest one; they must come from one measurement."""
    fastest = min(samples.values(), key=lambda sample: sample.median)
    for name, sample in samples.items():
        slowdown = ratio_interval(sample, fastest)
        if sample is fastest or (slowdown.value <= TIE and not slowdown.is_different):
            return name
    raise AssertionError("the fastest is not worse than itself")


def difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Root mean square of found - expected, relative to that of expected; of several outputs, the worst counts.

    Infinite where shapes or NaNs differ.
    """
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    return max((_difference(x, y) for x, y in zip(found, expected, strict=True)), default=0.0)


def _difference(found: Array, expected: Array) -> float:
    x, y = found.astype(np.float64), expected.astype(np.float64)
    if not y.size:
        return 0.0
    same = (x == y) | (np.isnan(x) & np.isnan(y))  # infinities and NaNs agree with themselves
    with np.errstate(invalid="ignore"):
        error = float(np.sqrt(np.mean(np.where(same, 0.0, x - y) ** 2)))
    scale = float(np.sqrt(np.mean(np.where(np.isfinite(y), y, 0.0) ** 2)))
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
