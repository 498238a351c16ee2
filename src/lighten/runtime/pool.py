"""A pool of processes that run one artifact in parallel: more samples a second, not a shorter wait for one.

Several processes with one thread each usually give more than one process with several threads, because nobody waits
for anybody. Inputs and outputs pass through shared memory; only their places go through a pipe.
"""

import collections
import contextlib
import queue
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

    workers: processes, threads: of each; None = what the artifact asks for if it asks for workers, else one process of
    one thread for each usable core. room_bytes: for the inputs, and again for the outputs, of one call.

    Raises:
        ConfigError: workers is not positive, or a batch needs more room. ArtifactError: the artifact cannot be loaded,
        or a process died.
    """

    def __init__(
        self,
        out_dir: Path | str,
        *,
        workers: int | None = None,
        threads: int | None = None,
        room_bytes: int = ROOM_BYTES,
    ) -> None:
        artifact = read_artifact(Path(out_dir))
        asked = artifact.options if "workers" in artifact.options else {"workers": usable_cores(), "threads": 1}
        self.workers = asked["workers"] if workers is None else workers
        if type(self.workers) is not int or self.workers < 1:
            raise ConfigError(f"workers={self.workers!r} is below 1. Leave it out for one a core.")
        threads = asked.get("threads", 1) if threads is None else threads
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
