"""The final of a contest: a few artifacts timed side by side, in rounds that lie some seconds apart.

Why rounds: a machine can change under a measurement. The two cores of a virtual machine are moved about by its host,
and for seconds to minutes they may share so little that a second thread gains nothing, or take 1.8 times as long. What
was measured in one such state need not hold in the next.

So the fastest is the one with the least mean time over all rounds: without knowledge of what comes, a state counts by
the share of time that it was seen, and that sum is what a caller waits. The median of all calls would tell of the more
frequent state alone, and jump at half; the least of the worst ratios would let one odd process decide, the more so the
more rounds there are. Calls within a block still count by their median: an interruption says nothing about the
candidate that it hit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighten.errors import ConfigError
from lighten.runtime.measure import LatencySample, mean_ratio_interval, measure_latency, pooled
from lighten.runtime.spec import Array

# A tie is what the interval cannot tell apart, and no more than this by the estimate: a wide interval is not a licence.
TIE = 1.03


@dataclass(frozen=True, kw_only=True)
class FinalConfig:
    """How finalists are timed.

    rounds: always taken; more, up to most_rounds, where the machine is unsteady and there is something to choose.
    processes: of each finalist in a round. pause_s: seconds between rounds. drift: how many times the shortest time of
    a finalist, of all rounds and the look before them, its longest may be on a steady machine. Processes of one
    artifact differ by 0.5 % where it is quiet (see measure), and one that met the other state took 1.6 to 1.8 times as
    long: one of three such moves a round by 20 % or more, so 1.15 lies well above the one and below the other.
    """

    rounds: int = 2
    most_rounds: int = 5
    processes: int = 3
    pause_s: float = 5.0
    drift: float = 1.15

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= self.most_rounds:
            raise ConfigError(
                f"rounds={self.rounds} is not between 1 and most_rounds={self.most_rounds}. Use 2, and 5 at most."
            )
        if self.processes < 1:
            raise ConfigError(f"processes={self.processes} is below 1. Use 3.")
        if not 0 <= self.pause_s < float("inf"):
            raise ConfigError(f"pause_s={self.pause_s} is not a number of seconds. Use 5, or 0 for no pause.")
        if not self.drift >= 1:
            raise ConfigError(f"drift={self.drift} is below 1, which nothing can keep. Use 1.15.")


@dataclass(frozen=True)
class Finalist:
    """An artifact on a number of threads. looked_ms: what a first look at it gave, in milliseconds a call."""

    path: Path
    threads: int
    looked_ms: float


@dataclass(frozen=True, kw_only=True)
class Final:
    """winner: a name. samples: of each finalist, all rounds together. round_ms: its mean time at the first look and in
    each round. rounds: how many there were. is_steady: whether no finalist moved by more than the config's drift, and
    no round alone would have chosen otherwise."""

    winner: str
    samples: Mapping[str, LatencySample]
    round_ms: Mapping[str, tuple[float, ...]]
    rounds: int
    is_steady: bool


def run_final(
    finalists: Mapping[str, Finalist],
    inputs: Sequence[Array],
    config: FinalConfig,
    *,
    on_round: Callable[[int], None] = lambda number: None,
) -> Final:
    """Time finalists, in order of preference, on inputs. on_round: called with the number of each round, from 1.

    Raises:
        ArtifactError: see measure_latency.
    """
    rounds: list[Mapping[str, LatencySample]] = []
    while True:
        if rounds:
            time.sleep(config.pause_s)
        on_round(len(rounds) + 1)
        rounds.append(_time(finalists, inputs, config.processes))
        found = _judge(finalists, rounds, config.drift)
        is_enough = found.is_steady or len(finalists) == 1
        if len(rounds) >= (config.rounds if is_enough else config.most_rounds):
            return found


def first_of_the_best(samples: Mapping[str, LatencySample]) -> str:
    """The first of samples that is not worse than the fastest on average; they must come from one measurement."""
    fastest = min(samples.values(), key=lambda sample: sample.mean)
    for name, sample in samples.items():
        slowdown = mean_ratio_interval(sample, fastest)
        if sample is fastest or (slowdown.value <= TIE and not slowdown.is_different):
            return name
    raise AssertionError("the fastest is not worse than itself")


def _time(finalists: Mapping[str, Finalist], inputs: Sequence[Array], processes: int) -> Mapping[str, LatencySample]:
    return measure_latency(
        {name: finalist.path for name, finalist in finalists.items()},
        inputs,
        threads={name: finalist.threads for name, finalist in finalists.items()},
        processes=processes,
    )


def _judge(finalists: Mapping[str, Finalist], rounds: Sequence[Mapping[str, LatencySample]], drift: float) -> Final:
    samples = {name: pooled([of_round[name] for of_round in rounds]) for name in finalists}
    winner = first_of_the_best(samples)
    round_ms = {
        name: (finalist.looked_ms, *(of_round[name].mean for of_round in rounds))
        for name, finalist in finalists.items()
    }
    is_still = all(max(times) <= drift * min(times) for times in round_ms.values())
    is_agreed = all(of_round[winner].mean <= TIE * min(s.mean for s in of_round.values()) for of_round in rounds)
    return Final(
        winner=winner, samples=samples, round_ms=round_ms, rounds=len(rounds), is_steady=is_still and is_agreed
    )
