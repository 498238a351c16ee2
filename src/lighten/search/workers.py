"""Workers: where the work of a search is done.

A job is a function at the top of a module: of the task, and of plain data. It runs here, one at a time, or in several
processes (see pool). What a job writes it writes into a folder; whichever worker did it, the folder is on this machine
once the job is done.
"""

import concurrent.futures
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lighten.task import Task

Tell = Callable[[float, str], None]


class WorkerLost(Exception):  # noqa: N818  what happens to machines, not an error of ours or the caller's
    """A worker died in the middle of a job; the message says where, and its last words."""


def quiet(share: float, doing: str) -> None:
    """Tell nobody."""


class Workers:
    """Those of one task: this process alone. n: jobs at once.

    Others inherit what they do not do elsewhere. A context manager that ends what it started.
    """

    n = 1

    def __init__(self, task: Task) -> None:
        self.task = task

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

    def close(self) -> None:
        """End every job."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *about: object) -> None:
        self.close()
