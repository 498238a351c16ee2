"""The near end of a worker process: start it, ask it for a block, keep it stopped in between, and say why it died."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from lighten.errors import ArtifactError
from lighten.runtime.energy import energy_meter
from lighten.runtime.spec import Array

CAN_STOP = hasattr(signal, "SIGSTOP")
SPIN_DOWN_SECONDS = 0.06  # where a process cannot be stopped: its threads spin for about 40 ms after a call
TAIL_BYTES = 2000


class StartUp(NamedTuple):
    """Milliseconds from starting a process to its first answer, and three parts of it: the runtime's import, the
    model's loading and checking, and the first call."""

    cold_start_ms: float
    import_ms: float
    load_ms: float
    first_call_ms: float


class Worker:
    """One artifact in one process; a context manager. It runs only while it is asked something.

    start_up: how long it took. peak_bytes: the most memory that the process held, as of the last block. energies_mj:
    millijoules a call, one a block, where they can be read. outputs: of the first call, in the artifact's order.

    Raises:
        ArtifactError: the artifact cannot be read, loaded or run, or the process dies; with the end of its stderr.
    """

    def __init__(self, name: str, artifact: Path, inputs_file: Path, threads: int) -> None:
        self.name = name
        self.peak_bytes = 0
        self.energies_mj: list[float] = []
        self._meter = energy_meter()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  a pipe could fill and block; close() closes it
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lighten.runtime.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"},
        )
        try:
            with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
                outputs = Path(folder) / "outputs.safetensors"
                files = {"artifact": str(artifact), "inputs": str(inputs_file), "outputs": str(outputs)}
                report = self._ask({**files, "threads": threads})
                cold_start_ms = (time.perf_counter() - started) * 1e3
                by_name = load_file(outputs)
                self.outputs: tuple[Array, ...] = tuple(by_name[f"#{i}"] for i in range(len(by_name)))
        except BaseException:
            self.close()
            raise
        self.start_up = StartUp(cold_start_ms, report["import_ms"], report["load_ms"], report["first_call_ms"])
        self.block(0.0)  # answered only after its warm-up
        self.energies_mj.clear()

    def block(self, min_block_ms: float) -> Array:
        """Milliseconds of each call in one block, [n]. Whatever else it asks for, the process is stopped afterwards."""
        before = self._meter.read()
        self._signal("SIGCONT")
        report = self._ask({"min_seconds": min_block_ms / 1e3})
        self._signal("SIGSTOP")
        joules = self._meter.joules_between(before, self._meter.read())
        if joules is not None:
            self.energies_mj.append(joules * 1e3 / report["n_calls"])
        if not CAN_STOP:
            time.sleep(SPIN_DOWN_SECONDS)
        self.peak_bytes = report["peak_bytes"]
        return np.array(report["samples_ns"], dtype=np.float64) / 1e6

    def close(self) -> None:
        """End the process, however it is."""
        self._process.kill()  # ends a stopped one too
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._stderr.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise ArtifactError(self._obituary()) from None
        if "error" in answer:
            raise ArtifactError(f"Cannot time '{self.name}': {answer['error']}")
        return answer

    def _obituary(self) -> str:
        try:
            code = self._process.wait(timeout=5)  # its last words may still be on their way
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        size_bytes = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size_bytes - TAIL_BYTES))
        said = self._stderr.read().decode(errors="replace").strip()
        return f"The process that times '{self.name}' ended with code {code}. It said last:\n{said or '(nothing)'}"

    def _signal(self, name: str) -> None:
        if CAN_STOP and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))
