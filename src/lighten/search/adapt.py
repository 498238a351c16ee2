"""Adapt: which variants are tried, in which order, and when it is enough.

A step is a target: the original's cost times 2^(-step/2), the last one the least cost there is. Of each family the step
is found up to which a short training keeps the drop within the budget, by doubling back (bisection), since more
compression costs more. What a family's own limit is in harm becomes the unit of harm for the family of both. Then the
best steps are trained long; most trials are never. Everything depends on drops and on predictions, never on the clock,
so a search that was killed goes on as it would have. These are courses (see driver): they ask for trials, and are sent
whether they were good.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from lighten.errors import ConfigError
from lighten.search.allocate import Allocation
from lighten.search.candidate import Candidate
from lighten.search.choose import admissible
from lighten.search.clock import dtype_of
from lighten.search.config import SearchConfig
from lighten.search.driver import Begin, Course, Driver, Wanted
from lighten.search.profiled import Profiled, profile_networks, profiled_terms
from lighten.search.realize import Variant, default_epochs
from lighten.search.space import (
    Network,
    Space,
    device_terms,
    space,
    time_terms,
    weight_terms,
)
from lighten.search.study import Spec

FIRST_STEP = 3
MOST_STEPS = 14
LAST_STEP = 0.95  # of the step before it: the last may be short, but has to gain what timing can tell
LONGS = 3  # long trainings of a family
INTEGERS = "w8a8"


@dataclass(kw_only=True)
class Search:
    """A search at work. whole: the original's cost on each runtime that can run it."""

    driver: Driver
    whole: Mapping[str, float]
    _points: dict[tuple[str, int], Allocation | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config, self.budget = self.driver.config, self.driver.budget
        self.short = default_epochs(self.driver.task, self.config)

    def listed(self) -> None:
        """Try what the config lists, less compression first; what is hopeless ends its path."""
        paths = [partial(self._path, path) for path in _paths(self.config, self.short)]
        for not_tried in self.driver.follow(paths):
            self.driver.candidates += not_tried

    def adaptive(self, network: Network) -> None:
        """The search layer by layer."""
        kinds = {choice.kind for choice in network.choices}
        # Layers are timed before anything is trained: a machine that trains would disturb it.
        spaces = [self._space(network, family) for family in ("channels", "zeros") if family in kinds]
        alone = [made for made in spaces if made is not None]
        both = self._space(network, "both") if len(alone) == 2 else None
        begins: list[Begin[_Bound | None]] = [
            self._integers,
            *(partial(self._bound, made, FIRST_STEP) for made in alone),
        ]
        bounds = {bound.space.family: bound for bound in self.driver.follow(begins) if bound is not None}
        if both is not None:
            scale = {kind: bound.unit for kind, bound in bounds.items()}
            best = max(bound.passed for bound in bounds.values())
            (bounds["both"],) = self.driver.follow([partial(self._bound, both.in_units_of(scale), best + 1, best)])
        if self.short and self.config.long_factor > 1:
            list(self.driver.follow([partial(self._train_long, bounds, self.short * self.config.long_factor)]))

    def _path(self, path: list[tuple[int, Variant]]) -> Course[list[Candidate]]:
        """The variants one after another; returns those that are not tried, with a note why."""
        reason = ""
        not_tried: list[Candidate] = []
        for step, variant in path:
            if variant.has_zeros and "native" not in self.whole:
                reason = reason or f"not tried: {self._without_native}"
            if reason:
                not_tried += [replace(trial, note=reason) for trial in variant.trials()]
                continue
            changed = variant.has_zeros or variant.has_fewer_channels
            good = yield Wanted(Spec("listed", step, variant.epochs), variant, self._is_hopeful)
            if changed and not good:
                name = variant.trials()[-1].name
                reason = f"not tried: {name} already drops too much, with its whole interval"
        return not_tried

    def _integers(self) -> "Course[_Bound | None]":
        """All channels, in integers; it bounds nothing."""
        if INTEGERS in self.config.schemes and "onnxruntime" in self.whole:
            variant = Variant(
                name="all channels", schemes=(INTEGERS,), runtimes=self._dense_runtimes, narrow_to=self.budget.narrow_to
            )
            yield Wanted(Spec("integers", 0, 0), variant, bool)
        return None

    def _bound(self, made: Space, start: int, least: int = 0) -> "Course[_Bound]":
        """The step up to which a short training of the family is within the budget. least: what others reach."""
        outcomes: dict[int, bool] = {}
        points: dict[int, Allocation] = {}
        while (step := next_step(outcomes, start, least)) is not None:
            point = self._point(made, step)
            if point is None:
                outcomes[step] = False
                continue
            points[step] = point
            if not any(point.picked):
                outcomes[step] = True  # the network as it is takes no longer
                continue
            spec = Spec(made.family, step, self.short)
            outcomes[step] = yield Wanted(spec, self._variant(made, point, self.short), self._has_passed)
        return _Bound(made, points, outcomes, least)

    def _train_long(self, bounds: Mapping[str, "_Bound"], epochs: int) -> Course[None]:
        """The furthest steps again, with more epochs, the cheapest first, as long as they may win.

        More epochs carry further, so it begins with the step after the furthest that a short training could do.
        """
        best = math.inf  # predicted cost of what is within the budget
        for bound in sorted(bounds.values(), key=lambda b: b.cost_of(b.passed)):
            step, way = min(bound.passed + 1, bound.reachable[-1]), 0
            for _ in range(LONGS):
                point = self._point(bound.space, step) if step in bound.reachable[1:] else None
                if point is None or not any(point.picked) or point.cost >= best:
                    break
                spec = Spec(bound.space.family, step, epochs)
                good = yield Wanted(spec, self._variant(bound.space, point, epochs), self._is_admissible)
                if good:
                    best = min(best, point.cost)
                if way and good != (way > 0):
                    break
                way = 1 if good else -1
                step += way

    def _point(self, made: Space, step: int) -> Allocation | None:
        """The family's point for a step, the one of before where the search goes on: tables may be timed anew.

        None where there is none that costs so little.
        """
        key = (made.family, step)
        if key not in self._points:
            kept = self.driver.study.once(f"point {made.family}-{step}", lambda: self._sought(made, step))
            self._points[key] = Allocation(tuple(kept["picked"]), kept["harm"], kept["cost"]) if kept else None
        return self._points[key]

    def _sought(self, made: Space, step: int) -> dict[str, Any]:
        """The point for a step as data, {} where there is none, which is kept like any other."""
        target, least = self.driver.cost * 2 ** (-step / 2), made.least
        if target < least < LAST_STEP * self.driver.cost * 2 ** (-(step - 1) / 2):
            target = least
        try:
            return asdict(made.point(target))
        except ConfigError:
            return {}

    def _variant(self, made: Space, point: Allocation, epochs: int) -> Variant:
        schemes, runtimes = self.config.schemes, self._dense_runtimes
        if made.family != "channels":
            schemes, runtimes = self.config.sparse_schemes, ("native",)
        in_ms = self.budget.minimize == "latency"
        variant = made.variant(
            point, in_ms=in_ms, schemes=schemes, runtimes=runtimes, epochs=epochs, narrow_to=self.budget.narrow_to
        )
        return replace(variant, name=f"{variant.name}, {epochs} epochs") if epochs > self.short else variant

    @property
    def _without_native(self) -> str:
        device = self.config.device
        if device is None:
            return "the native engine does not run this model"
        return f"what zeros gain on {device.name} is not in its profile"

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
        if self.config.device is not None:
            peaks = self.config.device.peak_macs_per_s
            dtype = max(map(dtype_of, self.config.schemes), key=lambda dtype: peaks[dtype].value)
            return space(network, family, device_terms(network, family, self.config.device, dtype), whole)
        tell, workers = self.driver.part(0.0), self.driver.workers
        if runtime != "native":
            terms = time_terms(network, family, runtime, whole, self.config.threads, tell, workers)
        else:
            terms = profiled_terms(network, family, self._profiled(network), whole)
        return space(network, family, terms, whole)

    def _profiled(self, network: Network) -> list[Profiled]:
        """As it was when the search began: which points there are must not depend on the moment."""

        def profiled() -> list[dict[str, Any]]:
            found = profile_networks(network, self.config, self.driver.part(0.0), self.driver.workers)
            return [asdict(each) for each in found]

        return [Profiled(**each) for each in self.driver.study.once("profiled", profiled)]

    def _is_hopeful(self, found: list[Candidate]) -> bool:
        """Whether any may be within the budget, as far as its interval says."""
        return not found or any(c.drop is None or c.drop.low <= self.budget.max_drop for c in found)

    def _has_passed(self, found: list[Candidate]) -> bool:
        return any(c.drop is not None and c.drop.value <= self.budget.max_drop for c in found)

    def _is_admissible(self, found: list[Candidate]) -> bool:
        return bool(admissible(found, self.driver.candidates, self.budget))


@dataclass(frozen=True)
class _Bound:
    """How far a family goes. points: of the steps looked at. outcomes: whether they were within the budget.

    least: how far it goes in any case, as families go that are part of it.
    """

    space: Space
    points: Mapping[int, Allocation]
    outcomes: Mapping[int, bool]
    least: int = 0

    @property
    def passed(self) -> int:
        """The furthest step within the budget, 0 where none is."""
        return max((step for step, good in self.outcomes.items() if good), default=self.least)

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
