"""Workers for tests: several at once in one process, which finish in a random order."""

import random
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from lighten.search.driver import make_trial
from lighten.search.workers import WorkerLost, Workers
from lighten.task import Task


class Shuffled(Workers):
    """Workers that finish in a random order; make is done in place of every job, when it finishes."""

    def __init__(self, task: Task, n: int, seed: int, make: Callable[..., Any] = make_trial) -> None:
        super().__init__(task)
        self.n, self.make, self.draw = n, make, random.Random(seed)
        self.waiting: dict[Future[Any], Callable[[], Any]] = {}
        self.begun: list[str] = []
        self.most = self.cancelled = 0

    def submit(self, job: Callable[..., Any], *args: Any, into: Path | None = None, tell: Any = None) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting[future] = partial(self.make, self.task, *args, folder=into, tell=tell)
        self.begun.append(args[1].name)
        self.most = max(self.most, len(self.waiting))
        assert len(self.waiting) <= self.n
        return future

    def wait(self, futures: Collection[Future[Any]], limit_s: float) -> None:
        future = self.draw.choice([future for future in futures if not future.done()])
        try:
            future.set_result(self.waiting.pop(future)())
        except (WorkerLost, RuntimeError) as error:
            future.set_exception(error)

    def cancel(self, future: Future[Any]) -> None:
        del self.waiting[future]
        self.cancelled += 1
