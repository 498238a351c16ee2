"""Workers for tests: several at once in one process, which finish in a random order; and what workers find."""

import random
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from lighten.search.adapt import Search
from lighten.search.choose import Budget
from lighten.search.config import SearchConfig
from lighten.search.driver import Driver, make_trial
from lighten.search.study import Study
from lighten.search.workers import WorkerLost, Workers
from lighten.task import Task, evaluate


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


def found_by(workers: Workers, folder: Path, epochs: int) -> list[tuple[object, ...]]:
    """A real trial of each of two families by workers: what is known of each candidate."""
    task = workers.task
    config = SearchConfig(ratios=(0.5,), sparsities=(0.8,), schemes=(None,), epochs=epochs)
    driver = Driver(
        task=task,
        budget=Budget(max_drop=0.05, minimize="size"),
        config=config,
        study=Study(folder, {}),
        baseline=evaluate(task.model, task.selection, task.metric, 100),
        cost=1.0,
        workers=workers,
        tell=lambda progress: None,
    )
    with driver.searching():
        Search(driver=driver, whole={"onnxruntime": 1.0, "native": 1.0}).listed()
    assert driver.n_asked == 2
    return [(c.name, c.n_params, c.size_bytes, c.drop, c.note) for c in driver.candidates]
