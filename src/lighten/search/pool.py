"""Pool: the jobs of a search in processes of this machine, each with its share of the cores.

Every job gets a process of its own (job.py): what it takes, memory and all, ends with it, a job is cancelled by killing
it, and one that dies takes no other along. Importing what a job needs takes some 4.5 s of one core each time; trainings
that are worth a pool take minutes. Tasks and results are pickled between our own processes, by cloudpickle, since a
task's functions may be defined anywhere.
"""

import contextlib
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle

from lighten.errors import ArtifactError, ConfigError, TaskError
from lighten.runtime.cpu import usable_cores
from lighten.runtime.process import Process
from lighten.search.workers import Tell, WorkerLost, Workers, quiet
from lighten.task import Task


class Pool(Workers):
    """n processes at most, each with an equal share of the cores, one at least.

    Raises:
        ConfigError: n is below 2. TaskError: the task cannot be pickled.
    """

    def __init__(self, task: Task, n: int) -> None:
        super().__init__(task)
        if n < 2:
            raise ConfigError(f"A pool of {n} is none. Use 2 workers or more, or leave it out.")
        self.n = n
        packed = pickled(task)
        self._folder = tempfile.TemporaryDirectory(prefix="lighten-")
        self._scratch = Path(self._folder.name)
        (self._scratch / "task").write_bytes(packed)
        self._processes: dict[Future[Any], Process] = {}
        self._waiting = ThreadPoolExecutor(n, thread_name_prefix="lighten-pool")
        self._n_jobs = 0

    def submit(self, job: Callable[..., Any], *args: Any, into: Path | None = None, tell: Tell = quiet) -> Future[Any]:
        """See Workers; tell is not called."""
        self._n_jobs += 1
        given, result = (self._scratch / f"{kind}-{self._n_jobs}" for kind in ("job", "result"))
        given.write_bytes(cloudpickle.dumps((job, args, {} if into is None else {"folder": into})))
        # Started by this thread: a process dies with the thread that started it (see runtime.worker).
        process = Process(
            "lighten.search.job",
            f"job {self._n_jobs}",
            max(1, usable_cores() // self.n),
            limit_s=threading.TIMEOUT_MAX,
            environment={"OMP_WAIT_POLICY": "PASSIVE"},  # they share the machine with each other, see cli
        )
        with contextlib.suppress(ArtifactError):  # it is dead already, which its reader will find
            process.send(
                {"path": sys.path, "task": str(self._scratch / "task"), "job": str(given), "result": str(result)}
            )
        future = self._waiting.submit(_result, process, given, result)
        self._processes[future] = process
        future.add_done_callback(self._processes.pop)
        return future

    def cancel(self, future: Future[Any]) -> None:
        """Kill its process, and wait for that."""
        process = self._processes.get(future)
        if process is not None:
            process.process.kill()
            process.process.wait()

    def close(self) -> None:
        """Kill all processes."""
        for future in list(self._processes):
            self.cancel(future)
        self._waiting.shutdown()
        self._folder.cleanup()


def pickled(task: Task) -> bytes:
    """task for another process.

    Raises:
        TaskError: something in it cannot be pickled.
    """
    try:
        packed: bytes = cloudpickle.dumps(task)
    except Exception as error:
        raise TaskError(
            f"Task '{task.name}' cannot be sent to another process: {type(error).__name__}: {error}. Keep open files, "
            "locks and the like out of it, or use one worker."
        ) from error
    return packed


class _FarTraceback(Exception):  # noqa: N818
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _result(process: Process, given: Path, result: Path) -> Any:
    """What the job returned; raises what it raised, with its traceback as the cause."""
    try:
        with process:
            process.receive()
    except (ArtifactError, OSError) as error:
        raise WorkerLost(str(error)) from None
    raised, traceback, value = pickle.loads(result.read_bytes())  # our own process wrote it just now
    given.unlink()
    result.unlink()
    if raised is not None:
        raise raised from _FarTraceback(traceback)
    return value
