"""A contest: of several artifacts that should compute the same, find the fastest that really does.

First a look: every candidate gets one process and a short time, and shows its outputs; those that fail, or whose
outputs differ from the expected ones by more than rounding, are out. Then a final: the fastest few are timed side by
side, in rounds that lie some seconds apart. Candidates stand in order of preference: of those that are as good as the
fastest, the first one wins.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lighten.errors import ArtifactError, LightenError
from lighten.runtime.final import FinalConfig, Finalist, run_final
from lighten.runtime.measure import LatencySample, Ratio, mean_ratio_interval, measure_latency
from lighten.runtime.spec import Array

FIRST_BLOCKS = 3
FINALISTS = 3
HOPELESS = 2.0  # times the fastest at the first look; on a busy machine one process may be 1.6 times off (see measure)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An artifact on a number of threads; the same artifact may stand with several."""

    name: str
    path: Path
    threads: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """difference: from the expected outputs, root mean square over theirs. sample: of all rounds of the final, or of
    the first look where it was not in the final.

    refused: why it is out, or "". For finalists: slowdown, how many times longer than the winner it takes on average,
    and round_ms, the mean time at the first look and in each round of the final after it.
    """

    candidate: Candidate
    difference: float | None = None
    sample: LatencySample | None = None
    refused: str = ""
    slowdown: Ratio | None = None
    round_ms: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """In milliseconds a call; infinite where nothing was timed."""
        return float("inf") if self.sample is None else self.sample.median

    @property
    def mean(self) -> float:
        """As median, of LatencySample.mean."""
        return float("inf") if self.sample is None else self.sample.mean


@dataclass(frozen=True, kw_only=True)
class Contest:
    """winner; trials of every candidate, in the order given; the number of rounds of the final, and whether the machine
    was steady over the first look and all of them."""

    winner: Trial
    trials: tuple[Trial, ...]
    rounds: int
    is_steady: bool


def contest(
    candidates: Sequence[Candidate],
    inputs: Sequence[Array],
    expected: Sequence[Array],
    *,
    tolerance: float = 1e-3,
    finalists: int = FINALISTS,
    config: FinalConfig | None = None,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Contest:
    """Time candidates on inputs; expected: the outputs that all of them should give. See look and decide.

    Raises:
        ArtifactError: none of them works and agrees; the message says why, one by one.
    """
    trials = look(candidates, inputs, expected, tolerance=tolerance, on_progress=on_progress)
    return decide(trials, inputs, finalists=finalists, config=config)


def look(
    candidates: Sequence[Candidate],
    inputs: Sequence[Array],
    expected: Sequence[Array],
    *,
    tolerance: float,
    on_progress: Callable[[str], None] = lambda name: None,
) -> list[Trial]:
    """The first look. tolerance: the largest difference that still counts as rounding. on_progress: called with the
    name of each candidate before its turn."""
    trials = []
    for candidate in candidates:
        on_progress(candidate.name)
        trials.append(_first_look(candidate, inputs, expected, tolerance))
    return trials


def decide(
    trials: Sequence[Trial],
    inputs: Sequence[Array],
    *,
    finalists: int = FINALISTS,
    always: Collection[str] = (),
    config: FinalConfig | None = None,
    on_round: Callable[[int], None] = lambda number: None,
) -> Contest:
    """The final, among the fastest `finalists` of the first look that are not hopeless.

    always: names that are timed in it too, if they were not refused, so that the winner can be compared with them.
    config: None = FinalConfig(). on_round: called with the number of each round, from 1, before its turn.

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
    finals = {trial.candidate.name: trial for trial in chosen}
    found = run_final(
        {name: Finalist(trial.candidate.path, trial.candidate.threads, trial.mean) for name, trial in finals.items()},
        inputs,
        FinalConfig() if config is None else config,
        on_round=on_round,
    )
    for name, trial in finals.items():
        finals[name] = replace(
            trial,
            sample=found.samples[name],
            slowdown=mean_ratio_interval(found.samples[name], found.samples[found.winner]),
            round_ms=found.round_ms[name],
        )
    return Contest(
        winner=finals[found.winner],
        trials=tuple(finals.get(trial.candidate.name, trial) for trial in trials),
        rounds=found.rounds,
        is_steady=found.is_steady,
    )


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


def _first_look(candidate: Candidate, inputs: Sequence[Array], expected: Sequence[Array], tolerance: float) -> Trial:
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
