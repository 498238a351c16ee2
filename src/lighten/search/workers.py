"""Workers: where the work of a search is done.

A job is a function at the top of a module: of the task, and of plain data. It runs here, one at a time, or in several
processes (see pool), or on a Ray cluster (see cluster). What a job writes it writes into a folder; whichever worker did
it, the folder is on this machine once the job is done.
"""

import concurrent.futures
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from lighten.runtime.measure import LatencySample, measure_latency
from lighten.runtime.native.profiler import LayerTimes
from lighten.runtime.profile import profile
from lighten.runtime.spec import Array
from lighten.task import Task

WAIT_S = 0.5
RETRIES = 2  # of a job whose worker was lost
Tell = Callable[[float, str], None]
T = TypeVar("T")


class WorkerLost(Exception):  # noqa: N818  what happens to machines, not an error of ours or the caller's
    """A worker died in the middle of a job; the message says where, and its last words."""


def quiet(share: float, doing: str) -> None:
    """Tell nobody."""


class Workers:
    """Those of one task: this process alone. n: jobs at once. lost: a description of each loss of a worker.

    Others inherit what they do not do elsewhere. A context manager that ends what it started.
    """

    n = 1

    def __init__(self, task: Task) -> None:
        self.task = task
        self.lost: list[dict[str, Any]] = []

    def submit(self, job: Callable[..., Any], *args: Any, into: Path | None = None, tell: Tell = quiet) -> Future[Any]:
        """Have job(task, *args, tell=…) done, with folder=… where it is to write into a folder.

        tell: gets the share that is done, and a sentence, where the job runs in this process. The future may raise
        WorkerLost besides what the job raises.
        """
        future: Future[Any] = Future()
        try:
            future.set_result(job(self.task, *args, tell=tell, **({} if into is None else {"folder": into})))
        except Exception as error:  # noqa: BLE001  the future raises it
            future.set_exception(error)
        return future

    def wait(self, futures: Collection[Future[Any]], limit_s: float) -> None:
        """Until one of futures is done, or so long."""
        concurrent.futures.wait(futures, limit_s, concurrent.futures.FIRST_COMPLETED)

    def cancel(self, future: Future[Any]) -> None:
        """End the job; what it wrote so far is left."""

    def all_done(self, jobs: Sequence[tuple[Any, ...]], what: str, tell: Tell = quiet) -> list[Any]:
        """What jobs, each a function and its arguments, return, in order. what: they do, for people.

        Raises:
            WorkerLost: of one job, more than RETRIES times.
        """
        lost = [0] * len(jobs)
        running = {i: self.submit(*job, tell=tell) for i, job in enumerate(jobs)}
        found: dict[int, Any] = {}
        try:
            while running:
                tell(len(found) / len(jobs), f"{what} on {len(running)} of {self.n} workers")
                self.wait(list(running.values()), WAIT_S)
                for i in [i for i, future in running.items() if future.done()]:
                    future = running.pop(i)
                    error = future.exception()
                    if isinstance(error, WorkerLost):
                        lost[i] += 1
                        if self.has_lost(what, lost[i], error):
                            running[i] = self.submit(*jobs[i], tell=tell)
                            continue
                    found[i] = future.result()
        finally:
            for future in running.values():
                self.cancel(future)
        return [found[i] for i in range(len(jobs))]

    def has_lost(self, what: str, times: int, error: WorkerLost) -> bool:
        """Keep account of a worker that was lost at what; returns whether to try again."""
        self.lost.append({"at": what, "times": times, "why": str(error), "retried": times <= RETRIES})
        return times <= RETRIES

    def at_target(self, function: Callable[..., T], *args: Any, tell: Tell | None = None) -> T:
        """function(*args) on the machine that latency is to be low on; tell is handed on where it is this one."""
        return function(*args) if tell is None else function(*args, tell=tell)

    def latency(
        self, artifacts: Mapping[str, Path], inputs: Mapping[str, Array], *, threads: int, processes: int = 5
    ) -> dict[str, LatencySample]:
        """measure_latency on that machine."""
        return measure_latency(artifacts, inputs, threads=threads, processes=processes)

    def profile(
        self, artifacts: Mapping[str, Path], inputs: Mapping[str, Array], *, threads: int
    ) -> dict[str, LayerTimes]:
        """lighten.runtime.profile on that machine."""
        return profile(artifacts, inputs, threads=threads)

    def close(self) -> None:
        """End every job."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *about: object) -> None:
        self.close()
