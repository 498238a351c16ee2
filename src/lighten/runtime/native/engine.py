"""The engine: a checked program with its weights, compiled; and the call that runs samples on it.

Samples are split among threads where there are enough of them; those that are left over, and so a single one, are
computed by all threads together, layer by layer (emit/team.py), unless that was found slower (pace.py). A call needs
none of its helpers: where they are busy with other calls, or get no core, the caller's thread does their parts. The GIL
is released throughout.
"""

import ctypes
import os
import queue
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir

from lighten.runtime.native.emit.blob import LINE, Blob, aligned
from lighten.runtime.native.emit.code import Kernels
from lighten.runtime.native.emit.entry import add_entry, end_of
from lighten.runtime.native.emit.network import Network
from lighten.runtime.native.emit.team import CELL
from lighten.runtime.native.jit import compile_ir, host_target
from lighten.runtime.native.pace import Pace
from lighten.runtime.native.packed import Array
from lighten.runtime.native.profiler import Profiler
from lighten.runtime.native.program import Program
from lighten.runtime.native.schedule import WAKE, Target
from lighten.runtime.native.stored import Stored

SIGNATURE = ctypes.CFUNCTYPE(
    None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
)


@dataclass
class Arena:
    """What one thread, or all threads of a call, compute in. data: activations, uint8. cells: int64, all at epoch.

    An arena that a call was interrupted in is not used again: its cells are between two epochs.
    """

    data: Array
    cells: Array
    epoch: int = 0

    def __post_init__(self) -> None:
        self.addresses = address(self.data), address(self.cells)


@dataclass(frozen=True)
class Job:
    """What a helper is asked: arguments of `run`, and what must stay in memory until it has returned."""

    arguments: tuple[int, ...]
    own: Arena | None
    kept: tuple[Any, ...]


class Engine:
    """Call with one array for each input, [n, ...]; returns one of float32 for each output. Thread-safe.

    shapes: of the outputs, without the batch. lingers: whether helpers spin for the next call before they sleep. blob:
    of constants, None = its own. are_samples: whether the places of inputs and outputs are samples, as the caller has
    them: one sample's numbers after another's (batch.py). keeps_code: see compile_ir. profiler: is told what each call
    spends on each operation.
    """

    def __init__(
        self,
        program: Program,
        stored: Stored,
        shapes: Sequence[tuple[int, ...]],
        *,
        threads: int = 1,
        target: Target | None = None,
        lingers: bool = True,
        blob: Blob | None = None,
        are_samples: bool = False,
        keeps_code: bool = True,
        profiler: Profiler | None = None,
    ) -> None:
        assert len(shapes) == len(program.outputs)
        kernels, blob, target = Kernels(ir.Module()), blob or Blob(), target or host_target()
        self.profiler, of_samples = profiler, {"are_samples": are_samples, "is_profiled": profiler is not None}
        network = Network(kernels, blob, program, stored, target=target, threads=threads, **of_samples)
        add_entry(kernels, network.stages, threads, lingers=lingers)
        self.layout, self.shapes, self.n_threads = network.layout, tuple(shapes), threads
        self.n_stages = len(network.stages)
        self.program, self._written = program, network.written
        self.pace = Pace() if threads > 1 and network.work >= WAKE * target.barrier else None
        self.blob, self._bell = blob, aligned(LINE)
        self._code = compile_ir(str(kernels.module), keeps_code=keeps_code)
        self._run = SIGNATURE(self._code.get_function_address("run"))
        self._idle: list[Arena] = []
        self._teams: dict[int, _Team] = {}

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """See the class."""
        n = arrays[0].shape[0]
        inputs = [np.ascontiguousarray(array, np.float32) for array in arrays]
        outputs = [np.empty((n, *shape), np.float32) for shape in self.shapes]
        io = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*map(address, (*inputs, *outputs)))
        rest = n % self.n_threads
        is_shared = self.pace is not None and rest > 0 and self.pace.shares()
        n_split, n_threads = (n - rest, self.n_threads) if is_shared else (n, min(n, self.n_threads))
        arena, started = self._take(), time.perf_counter_ns()
        (data, cells), (constants, bell) = arena.addresses, self._fixed
        call = (data, constants, ctypes.addressof(io), n_split, n)
        if n_threads > 1:
            team = self._team()
            if team.has_time:
                for thread in range(1, n_threads):
                    own = self._take() if n_split else None
                    arguments = (own.addresses[0] if own else data, *call, thread, cells, arena.epoch, bell)
                    team.jobs.put(Job(arguments, own, (arena, io, inputs, outputs)))
        self._run(data, *call, 0, cells, arena.epoch, bell)
        if self.pace is not None and n == rest > 0:
            self.pace.took(is_shared, (time.perf_counter_ns() - started) / n)
        arena.epoch = end_of(arena.epoch, n_split, n, self.n_stages)
        if self.profiler is not None:
            stamps = arena.data[self.layout.size * 4 :].view(np.int64).reshape(-1, self.n_threads)
            self.profiler.told(self.program, stamps, n - n_split + n_split / n_threads)
        self._idle.append(arena)
        return outputs

    @cached_property
    def _fixed(self) -> tuple[int, int]:
        """Where constants and the bell are: asking takes a microsecond each, and some networks take twenty."""
        return address(self.blob.memory), address(self._bell)

    def _take(self) -> Arena:
        try:
            return self._idle.pop()
        except IndexError:
            return Arena(self.new_data(), aligned(CELL * 8 * self.n_threads))

    def _team(self) -> "_Team":
        """The other threads; a process that was forked has none of its parent's and starts its own."""
        team = self._teams.get(os.getpid())
        if team is None:
            team = self._teams.setdefault(os.getpid(), _Team(self.n_threads - 1))
            team.start(self._run, self._idle, (self._code, self.blob, self._bell))
            weakref.finalize(self, team.end)
        return team

    def new_data(self) -> Array:
        """Room for the activations of one sample, margins filled and constants written: uint8."""
        n_stamps = 0 if self.profiler is None else (len(self.program.ops) + 2) * self.n_threads
        data = aligned(self.layout.size * 4 + 8 * n_stamps)
        floats = data[: self.layout.size * 4].view(np.float32)
        for start, end, value in self.layout.fills:
            floats[start:end] = value
        for addresses, array in self._written:
            floats[addresses] = array
        return data


class _Team:
    """Threads of one process that do the jobs in a queue."""

    def __init__(self, n: int) -> None:
        self.n, self.is_started, self.starting = n, False, threading.Lock()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    @property
    def has_time(self) -> bool:
        """Whether fewer jobs wait than there are threads; if not, more would be done too late or not at all."""
        return self.jobs.qsize() < self.n

    def start(self, run: Any, idle: list[Arena], kept: tuple[Any, ...]) -> None:
        """Start the threads, once. kept: what `run` needs in memory."""
        with self.starting:
            if not self.is_started:
                self.is_started = True
                for i in range(self.n):
                    name, args = f"lighten-native-{i}", (self.jobs, run, idle, kept)
                    threading.Thread(target=_work, args=args, name=name, daemon=True).start()

    def end(self) -> None:
        """Let the threads end when they have done what they were asked."""
        for _ in range(self.n):
            self.jobs.put(None)


def _work(jobs: "queue.SimpleQueue[Job | None]", run: Any, idle: list[Arena], kept: tuple[Any, ...]) -> None:
    while (job := jobs.get()) is not None:
        run(*job.arguments)
        if job.own is not None:
            idle.append(job.own)
        del job  # and with it the arrays of a call that may be long over


def address(array: Array) -> int:
    """Where array lies in memory."""
    at: int = array.ctypes.data
    return at
