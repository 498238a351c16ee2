"""Adapt: which variants are tried, in which order, and when it is enough.

A step is a target: the original's cost times 2^(-step/2). Of each family the step is found up to which a short training
keeps the drop within the budget, by doubling back (bisection), since more compression costs more. What a family's own
limit is in harm becomes the unit of harm for the family of both. Then the best steps are trained long; most trials are
never. Everything depends on drops and on predictions, never on the clock, so a search that was killed goes on as it
would have.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lighten.errors import ConfigError
from lighten.metric import Scores
from lighten.search.allocate import Allocation
from lighten.search.candidate import Candidate
from lighten.search.choose import Budget, judgeable, judged_drop
from lighten.search.config import SearchConfig
from lighten.search.realize import Variant, default_epochs, realize
from lighten.search.space import Network, Space, space, time_terms, weight_terms
from lighten.search.study import Spec, Study
from lighten.task import Task

FIRST_STEP = 3
MOST_STEPS = 14
LONGS = 3  # long trainings of a family
WAIT_S = 0.5
INTEGERS = "w8a8"


@dataclass(frozen=True)
class Progress:
    """What the search is doing: done of total units of work, and a sentence."""

    done: float
    total: float
    doing: str


OnProgress = Callable[[Progress], None]


class OutOfTime(Exception):  # noqa: N818  the limit that was asked for, not an error
    """The time limit is reached in the middle of a trial."""


@dataclass(kw_only=True)
class Search:
    """A search at work. baseline: the original's scores on selection data. cost: the original's, of the objective.

    whole: the original's cost on each runtime that can run it. deadline: by time.monotonic. candidates: of all trials
    so far. stopped: why no trial begins any more, or "".
    """

    task: Task
    budget: Budget
    config: SearchConfig
    study: Study
    baseline: Scores
    cost: float
    whole: Mapping[str, float]
    scratch: Path
    tell: OnProgress
    deadline: float = math.inf
    candidates: list[Candidate] = field(default_factory=list)
    stopped: str = ""
    _done: int = 0

    def listed(self) -> None:
        """Try what the config lists, less compression first; what is hopeless ends its path."""
        for path in _paths(self.config, default_epochs(self.task, self.config)):
            reason = ""
            for step, variant in path:
                if variant.has_zeros and "native" not in self.whole:
                    reason = reason or "not tried: the native engine does not run this model"
                if reason:
                    self.candidates += [replace(trial, note=reason) for trial in variant.trials()]
                    continue
                spec = Spec("listed", step, variant.epochs)
                found = self._trial(spec, variant)
                changed = variant.has_zeros or variant.has_fewer_channels
                if changed and found and all(c.drop and c.drop.low > self.budget.max_drop for c in found):
                    reason = f"not tried: {found[-1].name} already drops too much, with its whole interval"

    def adaptive(self, network: Network) -> None:
        """The search layer by layer."""
        short = default_epochs(self.task, self.config)
        if INTEGERS in self.config.schemes and "onnxruntime" in self.whole:
            variant = Variant(
                name="all channels", schemes=(INTEGERS,), runtimes=self._dense_runtimes, narrow_to=self._narrow_to
            )
            self._trial(Spec("integers", 0, 0), variant)
        bounds: dict[str, _Bound] = {}
        kinds = {choice.kind for choice in network.choices}
        families = ["channels", "zeros"]
        if any(self.study.is_running(Spec("channels", step, short)) for step in range(MOST_STEPS + 1)):
            families.reverse()  # another process began with these; it will find ours when it comes to them
        for family in families:
            if family in kinds and (made := self._space(network, family)) is not None:
                bounds[family] = self._bound(made, short, FIRST_STEP)
        if len(bounds) == 2 and (made := self._space(network, "both")) is not None:
            scale = {kind: bound.unit for kind, bound in bounds.items()}
            best = max(bound.passed for bound in bounds.values())
            bounds["both"] = self._bound(made.in_units_of(scale), short, best + 1, least=best)
        if short and self.config.long_factor > 1:
            self._train_long(bounds, short * self.config.long_factor)

    def _bound(self, made: Space, epochs: int, start: int, least: int = 0) -> "_Bound":
        """The step up to which a short training of the family is within the budget. least: what others reach."""
        outcomes: dict[int, bool] = {}
        points: dict[int, Allocation] = {}
        while (step := next_step(outcomes, start, least)) is not None:
            try:
                points[step] = self._point(made, step)
            except ConfigError:
                outcomes[step] = False
                continue
            if not any(points[step].picked):
                outcomes[step] = True  # the network as it is takes no longer
                continue
            found = self._trial(Spec(made.family, step, epochs), self._variant(made, points[step], epochs))
            outcomes[step] = any(c.drop is not None and c.drop.value <= self.budget.max_drop for c in found)
        return _Bound(made, points, outcomes)

    def _train_long(self, bounds: Mapping[str, "_Bound"], epochs: int) -> None:
        """The furthest steps again, with more epochs, the cheapest first, as long as they may win.

        More epochs carry further, so it begins with the step after the furthest that a short training could do.
        """
        best = math.inf  # predicted cost of what is within the budget
        for bound in sorted(bounds.values(), key=lambda b: b.cost_of(b.passed)):
            step, way = min(bound.passed + 1, bound.reachable[-1]), 0
            for _ in range(LONGS):
                if step < 1 or step not in bound.reachable or bound.cost_of(step) >= best:
                    break
                try:
                    point = self._point(bound.space, step)
                except ConfigError:
                    break
                if not any(point.picked):
                    break
                spec = Spec(bound.space.family, step, epochs)
                found = self._trial(spec, self._variant(bound.space, point, epochs))
                if not found:
                    break
                good = any(self._is_within(c) for c in found)
                if good:
                    best = min(best, bound.cost_of(step))
                if way and good != (way > 0):
                    break
                way = 1 if good else -1
                step += way

    def _point(self, made: Space, step: int) -> Allocation:
        """The family's point for a step, the one of before where the search goes on: tables may be timed anew."""
        picked = self.study.once(f"{made.family}-{step}", made.point(self.cost * 2 ** (-step / 2)).picked)
        return made.at(picked)

    def _variant(self, made: Space, point: Allocation, epochs: int) -> Variant:
        schemes, runtimes = self.config.schemes, self._dense_runtimes
        if made.family != "channels":
            schemes, runtimes = self.config.sparse_schemes, ("native",)
        in_ms, short = self.budget.minimize == "latency", default_epochs(self.task, self.config)
        variant = made.variant(
            point, in_ms=in_ms, schemes=schemes, runtimes=runtimes, epochs=epochs, narrow_to=self._narrow_to
        )
        return replace(variant, name=f"{variant.name}, {epochs} epochs") if epochs > short else variant

    @property
    def _narrow_to(self) -> float | None:
        """Fewer bits make nothing faster, so they are looked for where bytes count."""
        counts = self.budget.minimize == "size" or self.budget.max_size_bytes is not None
        return self.budget.max_drop if counts else None

    @property
    def _dense_runtimes(self) -> tuple[str, ...]:
        """Dense networks run on what reads ONNX; all of these are tried."""
        return tuple(runtime for runtime in ("onnxruntime", "openvino") if runtime in self.whole)

    def _space(self, network: Network, family: str) -> Space | None:
        """None where the family has no runtime."""
        runtime = "onnxruntime" if family == "channels" else "native"
        if runtime not in self.whole:
            return None
        whole = self.whole[runtime]
        if self.budget.minimize == "size":
            return space(network, family, weight_terms(network, family, whole), whole)
        return space(
            network, family, time_terms(network, family, runtime, whole, self.config.threads, self.part(0.0)), whole
        )

    def _trial(self, spec: Spec, variant: Variant) -> list[Candidate]:
        """What the trial made, now or before; nothing where no time is left, or there were trials enough."""
        found = self._of_others(spec)
        if found is None:
            if self.stopped:
                return []
            if self._done >= self.config.max_trials:
                self.stopped = f"stopped after {self.config.max_trials} trials"
                return []
            try:
                found = self._run(spec, variant)
            except OutOfTime:
                self.stopped = self.out_of_time
                return []
            except KeyboardInterrupt:
                self.stopped = "stopped by hand"
                return []
        self._done += 1
        self.candidates += found
        return found

    def _of_others(self, spec: Spec) -> list[Candidate] | None:
        """What the trial made before, or in another process, which is waited for; None where nobody is at it."""
        while True:
            busy = self.study.is_running(spec)  # asked first: it may finish in between
            found = self.study.finished(spec, self.task.metric, self.baseline)
            if found is not None or not busy or time.monotonic() > self.deadline:
                return found
            time.sleep(WAIT_S)

    def _run(self, spec: Spec, variant: Variant) -> list[Candidate]:
        with self.study.trial(spec) as trial:
            scratch = self.scratch / f"{spec.family}-{spec.step}-{spec.epochs}"
            checkpoints = self.study.checkpoints(spec)
            made = realize(
                self.task, self.baseline, variant, self.config, scratch, self.part(1.0), checkpoints=checkpoints
            )
            shutil.rmtree(checkpoints, ignore_errors=True)
            trial.finish(made, variant.predicted_ms or self.cost)
        found = self.study.finished(spec, self.task.metric, self.baseline)
        assert found is not None
        return found

    @property
    def out_of_time(self) -> str:
        """What is said of a search that its time limit ended."""
        return f"stopped after {self.config.time_limit_s:g} s"

    def part(self, of_a_trial: float) -> Callable[[float, str], None]:
        """What tells progress within a trial, and stops it when the time is up."""
        so_far = self._so_far()

        def tell(share: float, doing: str) -> None:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            total = max(self.config.max_trials if not self.config.is_listed else 0, self._done + 1)
            self.tell(Progress(self._done + of_a_trial * share, total, f"{doing}{so_far}" if doing else ""))

        return tell

    def _so_far(self) -> str:
        """The best of the finished trials, by what is known before candidates are timed side by side."""
        good = [c for c in self.candidates if self._is_within(c)]
        if not good:
            return ""
        best = min(good, key=lambda c: (c.macs, c.size_bytes))
        assert best.drop is not None
        return f"; within the budget so far: {best.name}, drop {best.drop.value:.4f}"

    def _is_within(self, candidate: Candidate) -> bool:
        if candidate.drop is None:
            return False
        budget, _ = judgeable(self.candidates, self.budget)
        return judged_drop(candidate, budget) <= budget.max_drop


@dataclass(frozen=True)
class _Bound:
    """How far a family goes. points: of the steps looked at. outcomes: whether they were within the budget."""

    space: Space
    points: Mapping[int, Allocation]
    outcomes: Mapping[int, bool]

    @property
    def passed(self) -> int:
        """The furthest step within the budget, 0 where none is."""
        return max((step for step, good in self.outcomes.items() if good), default=0)

    @property
    def reachable(self) -> range:
        """Steps that have a point: all up to the first that has none."""
        none = [step for step in self.outcomes if step not in self.points]
        return range(min(none, default=MOST_STEPS + 1))

    def cost_of(self, step: int) -> float:
        """Predicted."""
        return self.points[step].cost if step in self.points else self.space.whole * 2 ** (-step / 2)

    @property
    def unit(self) -> float:
        """The harm at which the budget is used up: between the last that was within it and the first that was not."""
        good = [self.points[s].harm for s, within in self.outcomes.items() if within and s in self.points]
        bad = [self.points[s].harm for s, within in self.outcomes.items() if not within and s in self.points]
        ends = [x for x in (max(good, default=0.0), min(bad, default=0.0)) if x > 0]
        return math.exp(sum(map(math.log, ends)) / len(ends)) if ends else 1.0


def next_step(outcomes: Mapping[int, bool], start: int, least: int = 0) -> int | None:
    """The step to try next, None when the last good one is next to the first bad one.

    outcomes: of those that were tried. least: nothing at or below it is worth a trial.
    """
    good = max((step for step, within in outcomes.items() if within), default=least)
    bad = min((step for step, within in outcomes.items() if not within), default=MOST_STEPS + 1)
    if bad - good <= 1:
        return None
    if not outcomes:
        return min(max(start, good + 1), bad - 1)
    if bad > MOST_STEPS:
        return min(good + 2, MOST_STEPS)
    return (good + bad) // 2


def _paths(config: SearchConfig, epochs: int) -> Iterator[list[tuple[int, Variant]]]:
    """Ever more compression, each with a number that is its own."""
    channels = [
        Variant(
            name=f"{100 * (1 - ratio):g} % of channels",
            ratio=ratio,
            # All channels in float is the original itself, which is the baseline already.
            schemes=tuple(scheme for scheme in config.schemes if ratio or scheme is not None),
            epochs=epochs if ratio else 0,
        )
        for ratio in config.ratios or ()
    ]
    zeros = [
        Variant(
            name=f"{100 * sparsity:g} % zeros in blocks of 4×1",
            sparsity=sparsity,
            schemes=config.sparse_schemes,
            runtimes=("native",),
            epochs=epochs,
        )
        for sparsity in config.sparsities or ()
    ]
    yield [(i, variant) for i, variant in enumerate(channels)]
    yield [(len(channels) + i, variant) for i, variant in enumerate(zeros)]
