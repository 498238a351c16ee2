"""Samples a second of parallel processes: how far more of them help, and which of several crews does most."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import LatencySample
from lighten.runtime.pool import Pool
from lighten.runtime.spec import Array

ROUNDS = 3
WINDOWS = 3


@dataclass(frozen=True)
class Throughput:
    """efficiency: samples_per_s against `workers` times that of one worker; 1 = no loss."""

    workers: int
    samples_per_s: float
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Processes that run the artifact at path in parallel, each on that many threads."""

    path: Path
    workers: int
    threads: int


def measure_throughput(
    out_dir: Path,
    inputs: Sequence[Array],
    *,
    n_samples: int,
    threads: int = 1,
    seconds: float = 2.0,
    max_workers: int | None = None,
) -> list[Throughput]:
    """Samples a second with 1, 2, 4, … processes, up to max_workers (None = as many as the usable cores have room for).

    inputs: one batch, of n_samples samples, that is run again and again. threads: of each process. seconds: for each
    number of processes.

    Raises:
        ConfigError, ArtifactError: see Pool.
    """
    most = max(1, usable_cores() // threads) if max_workers is None else max_workers
    counts = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    found: list[Throughput] = []
    for workers in counts:
        with _warm(Crew(path=out_dir, workers=workers, threads=threads), inputs) as pool:
            rate = n_samples * _calls_per_s(pool, inputs, seconds)
        one = found[0].samples_per_s if found else rate
        found.append(Throughput(workers, rate, rate / (workers * one)))
    return found


def compare_crews(
    crews: Mapping[str, Crew], inputs: Sequence[Array], *, rounds: int = ROUNDS, seconds: float = 0.3
) -> dict[str, LatencySample]:
    """Run each crew on inputs, again and again; what is timed is one call, as a share of a crew that is always busy.

    Crews take turns, with new processes each time and WINDOWS windows of that many seconds. Two of the samples can be
    compared by ratio_interval.

    Raises:
        ConfigError, ArtifactError: see Pool.
    """
    blocks_ms: dict[str, list[tuple[Array, ...]]] = {name: [] for name in crews}
    for i in range(rounds):
        for name in list(crews) if i % 2 == 0 else reversed(list(crews)):
            with _warm(crews[name], inputs) as pool:
                rates = [_calls_per_s(pool, inputs, seconds) for _ in range(WINDOWS)]
            blocks_ms[name].append(tuple(np.array([1e3 / rate]) for rate in rates))
    return {name: LatencySample(blocks_ms=tuple(blocks)) for name, blocks in blocks_ms.items()}


def _warm(crew: Crew, inputs: Sequence[Array]) -> Pool:
    pool = Pool(crew.path, workers=crew.workers, threads=crew.threads)
    try:
        for _ in pool.map([tuple(inputs)] * (4 * crew.workers)):
            pass
    except BaseException:
        pool.close()
        raise
    return pool


def _calls_per_s(pool: Pool, inputs: Sequence[Array], seconds: float) -> float:
    n_calls, started = 0, time.perf_counter()
    for _ in pool.map(_until(started + seconds, tuple(inputs))):
        n_calls += 1
    return n_calls / (time.perf_counter() - started)


def _until(deadline: float, batch: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    yield batch
    while time.perf_counter() < deadline:
        yield batch
