"""Latency of artifacts, each in a process of its own, in many short blocks that alternate so that drift cancels.

Thread pools of two runtimes in one process disturb each other, and so do idle pools that still spin: ONNX Runtime's
threads burn about 40 ms after each call. So every candidate has its own process, and all but the one that is being
timed are stopped (SIGSTOP). A round times every candidate once, forwards and backwards by turns; the ratio of two
candidates is taken within each round, where the machine was the same for both.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lighten.errors import ConfigError
from lighten.runtime.process import Worker
from lighten.runtime.spec import Array

if TYPE_CHECKING:
    from lighten.measurement import Latency

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class LatencySample:
    """All timed calls of one candidate. blocks_ms: one array a round. peak_bytes: the most memory its process held.

    cold_start_ms: from starting the process to the first answer, with import_ms, load_ms and first_call_ms in it.
    """

    blocks_ms: tuple[Array, ...] = field(repr=False)
    cold_start_ms: float = 0.0
    import_ms: float = 0.0
    load_ms: float = 0.0
    first_call_ms: float = 0.0
    peak_bytes: int = 0

    @property
    def samples_ms(self) -> Array:
        """Every call of every block, [n]."""
        return np.concatenate(self.blocks_ms)

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

    def to_latency(self, runtime: str, threads: int, batch: int) -> "Latency":
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

    a and b must come from one measure_latency call. With fewer than 6 rounds the interval is infinitely wide: no
    resampling of so few can be 95 % sure of a median (2 · 0.5⁵ > 0.05).
    """
    pairs = zip(a.blocks_ms, b.blocks_ms, strict=True)
    ratios = np.array([np.median(x) / np.median(y) for x, y in pairs])
    if len(ratios) < 6:
        return Ratio(float(np.median(ratios)), 0.0, float("inf"))
    rows = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[rows], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def measure_latency(
    artifacts: Mapping[str, Path],
    inputs: Sequence[Array] | Mapping[str, Array],
    *,
    threads: int | Mapping[str, int],
    blocks: int = 20,
    min_block_ms: float = 20.0,
) -> dict[str, LatencySample]:
    """Time one call of each artifact on inputs, in order or by name. threads: for all, or by the artifact's key.

    What is timed is the runtime's own call on arrays that are ready. A block holds at least min_block_ms of calls, and
    never fewer than 3; min_block_ms=20 with blocks=20 costs half a second a candidate, plus starting and warming up.

    Raises:
        ConfigError: blocks or min_block_ms is not positive, or there is nothing to time. ArtifactError: a worker
        failed or died; the message ends with what it said last.
    """
    if not artifacts or blocks < 1 or min_block_ms <= 0:
        raise ConfigError(
            f"Cannot time {len(artifacts)} artifacts in {blocks} blocks of {min_block_ms} ms. Each must be positive."
        )
    with contextlib.ExitStack() as stack:
        inputs_file = stack.enter_context(_inputs_file(inputs))
        workers: dict[str, Worker] = {}
        for name, path in artifacts.items():
            n_threads = threads if isinstance(threads, int) else threads[name]
            workers[name] = stack.enter_context(Worker(name, Path(path), inputs_file, n_threads))
        blocks_ms = alternate(workers, blocks, min_block_ms)
        return {
            name: LatencySample(blocks_ms=tuple(blocks_ms[name]), peak_bytes=worker.peak_bytes, **worker.start_up)
            for name, worker in workers.items()
        }


def alternate(workers: Mapping[str, Worker], blocks: int, min_block_ms: float) -> dict[str, list[Array]]:
    """One block of each worker a round; every second round backwards, so that none is always the first."""
    names = list(workers)
    blocks_ms: dict[str, list[Array]] = {name: [] for name in names}
    for i in range(blocks):
        for name in names if i % 2 == 0 else reversed(names):
            blocks_ms[name].append(workers[name].block(min_block_ms))
    return blocks_ms


@contextlib.contextmanager
def _inputs_file(inputs: Sequence[Array] | Mapping[str, Array]) -> Iterator[Path]:
    from safetensors.numpy import save_file

    by_name = dict(inputs) if isinstance(inputs, Mapping) else {f"#{i}": array for i, array in enumerate(inputs)}
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        path = Path(folder) / "inputs.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in by_name.items()}, path)
        yield path
