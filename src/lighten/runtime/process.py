"""The near end of a process that answers questions: JSON, a line each way. If it dies, its last words are kept."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lighten.errors import ArtifactError

if TYPE_CHECKING:
    from typing_extensions import Self

TAIL_BYTES = 2000
NONE: Mapping[str, str] = {}
LIMIT_S = 900.0  # compiling a large network takes minutes


class Process:
    """``python -m module``, for work on what is called name; a context manager that ends it.

    threads: what OpenMP is told, before the process imports anything that uses it. limit_s: for an answer; a process
    that takes longer hangs, and is ended. environment: more variables. python: another interpreter.
    """

    def __init__(
        self,
        module: str,
        name: str,
        threads: int,
        limit_s: float = LIMIT_S,
        environment: Mapping[str, str] = NONE,
        python: str = sys.executable,
    ) -> None:
        self.name, self.limit_s = name, limit_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  a pipe could fill and block; close() closes it
        self.process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads) | dict(environment),
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question and wait for the answer.

        Raises:
            ArtifactError: the answer is an error, or none came in time, or the process died; then with the end of its
            stderr.
        """
        self.send(question)
        return self.receive()

    def send(self, question: dict[str, Any]) -> None:
        """The first half of ask."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise ArtifactError(self._obituary()) from None

    def receive(self) -> dict[str, Any]:
        """The second half of ask."""
        assert self.process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        alarm = threading.Timer(self.limit_s, give_up)
        alarm.start()
        try:
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            if late.is_set():
                raise ArtifactError(
                    f"The process that runs '{self.name}' did not answer within {self.limit_s:g} s and was ended."
                ) from None
            raise ArtifactError(self._obituary()) from None
        finally:
            alarm.cancel()
        if "error" in answer:
            raise ArtifactError(f"Cannot run '{self.name}': {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process, however it is; a stopped one too."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a question that the dead never read
                pipe.close()
        self._stderr.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _obituary(self) -> str:
        try:
            code = self.process.wait(timeout=5)  # its last words may still be on their way
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        size_bytes = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size_bytes - TAIL_BYTES))
        said = self._stderr.read().decode(errors="replace").strip()
        return f"The process that runs '{self.name}' ended with code {code}. It said last:\n{said or '(nothing)'}"


def _environment(threads: int) -> dict[str, str]:
    """A worker runs as a user's own process would: how lighten's own threads wait (see cli) is not handed on."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return inherited | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"}
