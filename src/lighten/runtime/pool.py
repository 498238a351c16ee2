"""A pool of processes that run one artifact in parallel: more samples a second, not a shorter wait for one.

Several processes with one thread each usually give more than one process with several threads, because nobody waits
for anybody. Inputs and outputs pass through shared memory; only their places go through a pipe.
"""

import collections
import contextlib
import queue
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lighten.errors import ConfigError
from lighten.runtime.artifact import read_artifact
from lighten.runtime.cpu import usable_cores
from lighten.runtime.process import Process
from lighten.runtime.runner import Runner
from lighten.runtime.shared import SharedArrays
from lighten.runtime.spec import Array

ROOM_BYTES = 2**28


class Pool:
    """A context manager. runner: a Runner whose calls run in whichever process is free; call it from many threads.

    workers: processes, None = one for each usable core. threads: of each. room_bytes: for the inputs, and again for the
    outputs, of one call.

    Raises:
        ConfigError: workers is not positive, or a batch needs more room. ArtifactError: the artifact cannot be loaded,
        or a process died.
    """

    def __init__(
        self, out_dir: Path | str, *, workers: int | None = None, threads: int = 1, room_bytes: int = ROOM_BYTES
    ) -> None:
        self.workers = usable_cores() if workers is None else workers
        if self.workers < 1:
            raise ConfigError(f"workers={workers} is below 1. Leave it out for one a core.")
        artifact = read_artifact(Path(out_dir))
        self.runner = Runner(artifact, self._run)
        self._free: queue.LifoQueue[_Member] = queue.LifoQueue()
        self._threads = ThreadPoolExecutor(self.workers)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighten-")))
            starting = [
                stack.enter_context(_Member(artifact.path, folder / str(i), threads, room_bytes))
                for i in range(self.workers)
            ]
            for member in starting:  # they load at the same time
                member.wait_until_loaded()
                self._free.put(member)
            self._stack = stack.pop_all()

    def map(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The outputs for each of batches, in order. A batch is what Runner takes: an array, a tuple, or a mapping.

        Twice as many batches as there are processes are taken ahead, no more.
        """
        pending: collections.deque[Future[Any]] = collections.deque()
        for batch in batches:
            pending.append(self._threads.submit(self.runner, batch))
            if len(pending) >= 2 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def close(self) -> None:
        """End the processes and free the memory."""
        self._threads.shutdown(cancel_futures=True)
        self._stack.close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        member = self._free.get()
        try:
            return member.run(arrays)
        finally:
            self._free.put(member)


class _Member(Process):
    def __init__(self, artifact: Path, folder: Path, threads: int, room_bytes: int) -> None:
        super().__init__("lighten.runtime.pool_worker", str(artifact), threads)
        folder.mkdir()
        self._inputs = SharedArrays(folder / "inputs", room_bytes)
        self._outputs = SharedArrays(folder / "outputs", room_bytes)
        files = {"inputs": str(folder / "inputs"), "outputs": str(folder / "outputs")}
        self.send({"artifact": str(artifact), "threads": threads, **files})

    def wait_until_loaded(self) -> None:
        self.receive()

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        places = self.ask({"places": self._inputs.put(arrays)})["places"]
        return [self._outputs.view(place).copy() for place in places]


@dataclass(frozen=True)
class Throughput:
    """efficiency: samples_per_s against `workers` times that of one worker; 1 = no loss."""

    workers: int
    samples_per_s: float
    efficiency: float


def measure_throughput(
    out_dir: Path, inputs: Sequence[Array], *, n_samples: int, seconds: float = 2.0, max_workers: int | None = None
) -> list[Throughput]:
    """Samples a second with 1, 2, 4, … processes of one thread, up to max_workers (None = every usable core).

    inputs: one batch, of n_samples samples, that is run again and again. seconds: for each number of workers.

    Raises:
        ConfigError, ArtifactError: see Pool.
    """
    most = usable_cores() if max_workers is None else max_workers
    counts = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    found: list[Throughput] = []
    for workers in counts:
        with Pool(out_dir, workers=workers) as pool:
            for _ in pool.map([tuple(inputs)] * (4 * workers)):
                pass  # warm-up
            n_calls, started = 0, time.perf_counter()
            for _ in pool.map(_until(started + seconds, tuple(inputs))):
                n_calls += 1
            rate = n_calls * n_samples / (time.perf_counter() - started)
        one = found[0].samples_per_s if found else rate
        found.append(Throughput(workers, rate, rate / (workers * one)))
    return found


def _until(deadline: float, batch: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    while time.perf_counter() < deadline:
        yield batch
