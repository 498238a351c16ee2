"""The engine: a checked program with its weights, compiled; and the call that runs samples on it.

Each thread computes samples of its own in an arena of its own, so threads never wait for each other within a call, and
the GIL is released while they compute. A single sample is computed by one thread.
"""

import ctypes
import itertools
import os
import platform
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir

from lighten.runtime.native.emit.code import I32, I64, POINTER, VOID, Code, Kernels, Value
from lighten.runtime.native.emit.network import Blob, Network
from lighten.runtime.native.jit import compile_ir, host_target
from lighten.runtime.native.packed import Array, Packed
from lighten.runtime.native.program import Program
from lighten.runtime.native.schedule import Target

FLUSH_DENORMALS = 0x8040  # MXCSR: denormals-are-zero and flush-to-zero
LINE = 64
SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)


class Engine:
    """Call with one float32 array for each input, [n, ...]; returns one for each output. Thread-safe.

    shapes: of the outputs, without the batch.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Packed],
        shapes: Sequence[tuple[int, ...]],
        *,
        threads: int = 1,
        target: Target | None = None,
    ) -> None:
        module, blob = ir.Module(), Blob()
        kernels = Kernels(module)
        network = Network(kernels, blob, program, weights, target=target or host_target())
        _add_entry(module, network.function)
        self.layout, self.shapes, self.n_threads = network.layout, tuple(shapes), threads
        self._constants = aligned(blob.size)
        blob.fill(self._constants)
        self._code = compile_ir(str(module))
        self._run = SIGNATURE(self._code.get_function_address("run"))
        self._idle: queue.LifoQueue[Array] = queue.LifoQueue()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """See the class."""
        n = arrays[0].shape[0]
        inputs = [np.ascontiguousarray(array) for array in arrays]
        outputs = [np.empty((n, *shape), np.float32) for shape in self.shapes]
        io = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*(array.ctypes.data for array in (*inputs, *outputs)))
        parts = min(self.n_threads, n)
        cuts = [n * i // parts for i in range(parts + 1)] if parts else [0]
        others = []
        if parts > 1:
            others = [self._workers().submit(self._samples, io, *ends) for ends in itertools.pairwise(cuts[1:])]
        if parts:
            self._samples(io, cuts[0], cuts[1])
        for other in others:
            other.result()
        return outputs

    def _samples(self, io: Any, first: int, last: int) -> None:
        try:
            arena = self._idle.get_nowait()
        except queue.Empty:
            arena = self.new_arena()
        self._run(arena.ctypes.data, self._constants.ctypes.data, ctypes.addressof(io), first, last)
        self._idle.put(arena)

    def _workers(self) -> ThreadPoolExecutor:
        """The other threads; a process that was forked has none of its parent's and starts its own."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self.n_threads - 1, "lighten-native")
        return self._pool[1]

    def new_arena(self) -> Array:
        """Room for the activations of one sample, margins filled: uint8."""
        arena = aligned(self.layout.size * 4)
        for start, end, value in self.layout.fills:
            arena.view(np.float32)[start:end] = value
        return arena


def aligned(size: int) -> Array:
    """uint8 zeros, size of them, from a cache line's start on."""
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]


def _add_entry(module: Value, network: Value) -> None:
    """run(data, constants, io, first, last): every sample in [first, last), with denormals as zeros."""
    function = ir.Function(module, ir.FunctionType(VOID, [POINTER] * 3 + [I64] * 2), "run")
    code = Code(function)
    data, constants, io, first, last = function.args
    x86 = "86" in _machine()
    if x86:
        state = code.b.alloca(I32, 2)
        kept, own = state, code.at(state, code.const(1), of=I32)
        save, restore = (
            ir.Function(module, ir.FunctionType(VOID, [POINTER]), f"llvm.x86.sse.{name}mxcsr") for name in ("st", "ld")
        )
        code.b.call(save, [kept])
        flags = code.b.or_(code.load(kept, I32), ir.Constant(I32, FLUSH_DENORMALS))
        code.store(flags, own)
        code.b.call(restore, [own])
    code.loop(first, last, lambda sample, _: code.b.call(network, [data, constants, io, sample]) and [])
    if x86:
        code.b.call(restore, [kept])
    code.b.ret_void()


def _machine() -> str:
    return platform.machine().lower()
