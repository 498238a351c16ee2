"""Latency of artifacts, each in a process of its own, in many short blocks that alternate so that drift cancels.

Thread pools of two runtimes in one process disturb each other, and so do idle pools that still spin: ONNX Runtime's
threads burn about 40 ms after each call. So every candidate has its own process, and all but the one that is being
timed are stopped (SIGSTOP). A round times every candidate once, forwards and backwards by turns; the ratio of two
candidates is taken within each round, where the machine was the same for both.

Two processes of one and the same artifact differ, persistently, by 0.5 % on a quiet machine and by up to 60 % on a
busy one (where their threads happened to be placed, which pages they got). So each candidate gets several processes,
one after another, and the interval of a ratio is resampled over processes first and rounds within them second. In a
simulation (400 trials, process effects as large as the noise of a round) intervals meant to be 95 % held the truth in
90 to 95 % with 5 to 8 processes, and in 38 % with one.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lighten.errors import ConfigError
from lighten.runtime.spec import Array
from lighten.runtime.timed import StartUp, Worker

if TYPE_CHECKING:
    from lighten.measurement import Latency

RESAMPLES = 2000
MIN_ROUNDS = 6
NO_START_UP = StartUp(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class LatencySample:
    """All timed calls of one candidate. blocks_ms: [processes][rounds], each an array of calls.

    start_up: the median over processes. peak_bytes: the most memory that a process held. energy_mj: millijoules of
    the whole CPU package a call, the median over blocks; None where they cannot be read. outputs: what the artifact
    made of the inputs.
    """

    blocks_ms: tuple[tuple[Array, ...], ...] = field(repr=False)
    start_up: StartUp = NO_START_UP
    peak_bytes: int = 0
    energy_mj: float | None = None
    outputs: tuple[Array, ...] = field(default=(), repr=False)

    @property
    def samples_ms(self) -> Array:
        """Every call of every block, [n]."""
        return np.concatenate([block for rounds in self.blocks_ms for block in rounds])

    @property
    def median(self) -> float:
        """In milliseconds a call."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """In milliseconds a call."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """In milliseconds a call."""
        return self.quantile(0.99)

    def quantile(self, q: float) -> float:
        """In milliseconds a call."""
        return float(np.quantile(self.samples_ms, q))

    @property
    def mean(self) -> float:
        """The mean over blocks of a block's median, in milliseconds a call."""
        return float(np.mean([np.median(block) for rounds in self.blocks_ms for block in rounds]))

    def to_latency(self, runtime: str, threads: int | None, batch: int) -> "Latency":
        """The two figures that a Measurement holds."""
        from lighten.measurement import Latency  # brings torch, which nothing else here needs

        return Latency(median=self.median, p90=self.p90, runtime=runtime, threads=threads, batch=batch)


@dataclass(frozen=True)
class Ratio:
    """How many times longer a takes than b: above 1, b is faster. low, high: two-sided 95 %."""

    value: float
    low: float
    high: float

    @property
    def is_different(self) -> bool:
        """Whether the interval excludes 1; if not, neither may be called faster."""
        return not self.low <= 1.0 <= self.high


def ratio_interval(a: LatencySample, b: LatencySample, *, seed: int = 0) -> Ratio:
    """The median over rounds of (median of a's block / median of b's block), with a percentile bootstrap over rounds.

    a and b must come from one measure_latency call. With fewer than 6 rounds in all the interval is infinitely wide:
    no resampling of so few can be 95 % sure of a median (2 · 0.5⁵ > 0.05).
    """
    return _interval(a, b, lambda of_a, of_b: np.median(of_a / of_b, axis=(-2, -1)), seed)


def mean_ratio_interval(a: LatencySample, b: LatencySample, *, seed: int = 0) -> Ratio:
    """As ratio_interval, but of the means over rounds: what a takes in the long run, where a machine has two states.

    A median says which state there was more of, and jumps from one to the other at half; a mean moves with the share.
    """
    return _interval(a, b, lambda of_a, of_b: of_a.mean(axis=(-2, -1)) / of_b.mean(axis=(-2, -1)), seed)


def _interval(a: LatencySample, b: LatencySample, compare: Callable[[Array, Array], Array], seed: int) -> Ratio:
    """compare: of two arrays [..., processes, rounds] to [...]."""
    of_a, of_b = (np.array([[np.median(x) for x in rounds] for rounds in each.blocks_ms]) for each in (a, b))
    assert of_a.shape == of_b.shape
    value = float(compare(of_a, of_b))
    if of_a.size < MIN_ROUNDS:
        return Ratio(value, 0.0, float("inf"))
    n_processes, n_rounds = of_a.shape
    rng = np.random.default_rng(seed)
    processes = rng.integers(n_processes, size=(RESAMPLES, n_processes, 1))
    rounds = rng.integers(n_rounds, size=(RESAMPLES, n_processes, n_rounds))
    low, high = np.quantile(compare(of_a[processes, rounds], of_b[processes, rounds]), [0.025, 0.975])
    return Ratio(value, float(low), float(high))


def pooled(samples: Sequence[LatencySample]) -> LatencySample:
    """samples of one candidate as one: the processes of all. Start-up and energy are the medians of theirs.

    Samples that were taken by the same measure_latency calls, pooled in the same order, can be compared like those of
    a single one.
    """
    energies_mj = [sample.energy_mj for sample in samples if sample.energy_mj is not None]
    return LatencySample(
        blocks_ms=tuple(rounds for sample in samples for rounds in sample.blocks_ms),
        start_up=StartUp(*np.median([sample.start_up for sample in samples], axis=0).tolist()),
        peak_bytes=max(sample.peak_bytes for sample in samples),
        energy_mj=float(np.median(energies_mj)) if energies_mj else None,
        outputs=samples[0].outputs,
    )


def measure_latency(
    artifacts: Mapping[str, Path],
    inputs: Sequence[Array] | Mapping[str, Array],
    *,
    threads: int | Mapping[str, int],
    processes: int = 5,
    blocks: int = 4,
    min_block_ms: float = 20.0,
) -> dict[str, LatencySample]:
    """Time one call of each artifact on inputs, in order or by name. threads: for all, or by the artifact's key.

    What is timed is the runtime's own call on arrays that are ready. Each candidate gets `processes` processes, one
    after another, and in each of them `blocks` blocks of at least min_block_ms and 3 calls, or one where calls take
    half a second. The defaults cost 2 to 3 seconds a candidate. processes=1 is for a first look: its intervals cannot
    know what another process would have shown.

    Raises:
        ConfigError: processes, blocks or min_block_ms is not positive, or there is nothing to time. ArtifactError: a
        worker failed or died; the message ends with what it said last.
    """
    of_each = {name: threads if isinstance(threads, int) else threads[name] for name in artifacts}
    with inputs_file(inputs) as file:
        start = {name: partial(Worker, name, Path(path), file, of_each[name]) for name, path in artifacts.items()}
        return measure_workers(start, processes=processes, blocks=blocks, min_block_ms=min_block_ms)


def measure_workers(
    start: Mapping[str, Callable[[], Worker]], *, processes: int = 5, blocks: int = 4, min_block_ms: float = 20.0
) -> dict[str, LatencySample]:
    """As measure_latency, of processes that may run anything.

    Raises:
        ConfigError: processes, blocks or min_block_ms is not positive, or there is nothing to time. ArtifactError: a
        worker failed or died; the message ends with what it said last.
    """
    if not start or processes < 1 or blocks < 1 or min_block_ms <= 0:
        raise ConfigError(
            f"Cannot time {len(start)} artifacts in {processes} processes, {blocks} blocks of {min_block_ms} ms "
            "each. Every one of these must be positive."
        )
    taken = [_take(start, blocks, min_block_ms) for _ in range(processes)]
    return {name: _sample([each[name] for each in taken]) for name in start}


class _Taken(NamedTuple):
    """What one process of a candidate gave."""

    rounds: tuple[Array, ...]
    worker: Worker


def _take(start: Mapping[str, Callable[[], Worker]], blocks: int, min_block_ms: float) -> dict[str, _Taken]:
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(begin()) for name, begin in start.items()}
        blocks_ms = alternate(workers, blocks, min_block_ms)
    return {name: _Taken(tuple(blocks_ms[name]), worker) for name, worker in workers.items()}


def _sample(taken: Sequence[_Taken]) -> LatencySample:
    workers = [each.worker for each in taken]
    energies_mj = [energy for worker in workers for energy in worker.energies_mj]
    return LatencySample(
        blocks_ms=tuple(each.rounds for each in taken),
        start_up=StartUp(*np.median([worker.start_up for worker in workers], axis=0).tolist()),
        peak_bytes=max(worker.peak_bytes for worker in workers),
        energy_mj=float(np.median(energies_mj)) if energies_mj else None,
        outputs=workers[0].outputs,
    )


def alternate(workers: Mapping[str, Worker], blocks: int, min_block_ms: float) -> dict[str, list[Array]]:
    """One block of each worker a round; every second round backwards, so that none is always the first."""
    names = list(workers)
    blocks_ms: dict[str, list[Array]] = {name: [] for name in names}
    for i in range(blocks):
        for name in names if i % 2 == 0 else reversed(names):
            blocks_ms[name].append(workers[name].block(min_block_ms))
    return blocks_ms


@contextlib.contextmanager
def inputs_file(inputs: Sequence[Array] | Mapping[str, Array]) -> Iterator[Path]:
    """A file from which a Worker reads inputs, while the context lasts."""
    from safetensors.numpy import save_file

    by_name = dict(inputs) if isinstance(inputs, Mapping) else {f"#{i}": array for i, array in enumerate(inputs)}
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        path = Path(folder) / "inputs.safetensors"
        save_file({name: np.asarray(array, order="C") for name, array in by_name.items()}, path)
        yield path
