"""A process that times one artifact, a block at a time, and is stopped in between."""

import signal
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from lighten.runtime.energy import energy_meter
from lighten.runtime.process import Process
from lighten.runtime.spec import Array

CAN_STOP = hasattr(signal, "SIGSTOP")
SPIN_DOWN_SECONDS = 0.06  # where a process cannot be stopped: its threads spin for about 40 ms after a call


class StartUp(NamedTuple):
    """Milliseconds from starting a process to its first answer, and three parts of it: the runtime's import, the
    model's loading and checking, and the first call."""

    cold_start_ms: float
    import_ms: float
    load_ms: float
    first_call_ms: float


class Worker(Process):
    """One artifact in one process, warmed up. It runs only while it is asked something.

    module: what the process runs, another that speaks as lighten.runtime.worker does. process: how, see Process.

    start_up: how long it took. peak_bytes: the most memory that the process held, as of the last block. energies_mj:
    millijoules a call, one a block, where they can be read. outputs: of the first call, in the artifact's order.

    Raises:
        ArtifactError: the artifact cannot be read, loaded or run, or the process dies.
    """

    def __init__(
        self,
        name: str,
        artifact: Path,
        inputs_file: Path,
        threads: int,
        module: str = "lighten.runtime.worker",
        **process: Any,
    ) -> None:
        started = time.perf_counter()
        super().__init__(module, name, threads, **process)
        self.peak_bytes = 0
        self.energies_mj: list[float] = []
        self._meter = energy_meter()
        try:
            with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
                outputs = Path(folder) / "outputs.safetensors"
                files = {"artifact": str(artifact), "inputs": str(inputs_file), "outputs": str(outputs)}
                report = self.ask({**files, "threads": threads})
                cold_start_ms = (time.perf_counter() - started) * 1e3
                by_name = load_file(outputs)
            self.outputs: tuple[Array, ...] = tuple(by_name[f"#{i}"] for i in range(len(by_name)))
            self.start_up = StartUp(cold_start_ms, report["import_ms"], report["load_ms"], report["first_call_ms"])
            self.block(0.0)  # answered only after its warm-up
        except BaseException:
            self.close()
            raise
        self.energies_mj.clear()

    def block(self, min_block_ms: float) -> Array:
        """Milliseconds of each call in one block, [n]; at least min_block_ms of them, and 3 if they are short."""
        before = self._meter.read()
        self._signal("SIGCONT")
        report = self.ask({"min_seconds": min_block_ms / 1e3})
        self._signal("SIGSTOP")
        joules = self._meter.joules_between(before, self._meter.read())
        if joules is not None:
            self.energies_mj.append(joules * 1e3 / report["n_calls"])
        if not CAN_STOP:
            time.sleep(SPIN_DOWN_SECONDS)
        self.peak_bytes = report["peak_bytes"]
        return np.array(report["samples_ns"], dtype=np.float64) / 1e6

    def _signal(self, name: str) -> None:
        if CAN_STOP and self.process.poll() is None:
            self.process.send_signal(getattr(signal, name))
