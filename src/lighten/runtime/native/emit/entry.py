"""The function that Python calls: what one of a team's threads does of a call."""

import platform
from collections.abc import Callable, Sequence

from llvmlite import ir

from lighten.runtime.native.emit.code import I32, I64, POINTER, VOID, Code, Kernels, Value
from lighten.runtime.native.emit.team import PART, linger, step

ENTRY = [POINTER] * 4 + [I64] * 3 + [POINTER, I64, POINTER]
FLUSH_DENORMALS = 0x8040  # MXCSR: denormals-are-zero and flush-to-zero


def add_entry(kernels: Kernels, stages: Sequence[Value], threads: int, *, lingers: bool) -> None:
    """run(own, shared, constants, io, n_split, n, thread, cells, epoch, bell).

    Samples [0, n_split) are split among threads, each in the arena `own`; those in [n_split, n) are computed one after
    another by all threads in the arena `shared`. Cells stand at epoch when the call begins, and at `end_of` after it.
    Thread 0, the caller's, rings the bell by adding 1; another one listens for the next ring when it has done its part,
    if it lingers.
    """
    function = ir.Function(kernels.module, ir.FunctionType(VOID, ENTRY), "run")
    code = Code(function)
    own, shared, constants, io, n_split, n, thread, cells, epoch, bell = function.args
    b, c = code.b, code.const
    is_caller = b.icmp_signed("==", thread, c(0))
    ring = b.select(is_caller, c(1), c(0))
    heard = b.atomic_rmw("add", bell, ring, "monotonic")

    def work() -> None:
        is_split = b.icmp_signed(">", n_split, c(0))
        with b.if_then(is_split):
            split = _samples(kernels, stages, threads)
            b.call(step(kernels, threads), [split, own, constants, io, n_split, thread, cells, epoch])
        first = b.add(epoch, b.select(is_split, c(2), c(0)))

        def sample(i: Value, at: list[Value]) -> list[Value]:
            for k, stage in enumerate(stages):
                now = b.add(at[0], c(2 * k))
                b.call(step(kernels, threads), [stage, shared, constants, io, i, thread, cells, now])
            return [b.add(at[0], c(2 * len(stages)))]

        code.loop(n_split, n, sample, [first])

    _without_denormals(code, work)
    if lingers:
        with b.if_then(b.not_(is_caller)):
            b.call(linger(kernels), [bell, heard])
    b.ret_void()


def end_of(epoch: int, n_split: int, n: int, n_stages: int) -> int:
    """Where cells stand after a call that began at epoch: two further for each step."""
    return epoch + 2 * ((n_split > 0) + (n - n_split) * n_stages)


def _samples(kernels: Kernels, stages: Sequence[Value], threads: int) -> Value:
    """A function of PART whose parts are whole samples: `sample` is the number of them."""

    def emit(code: Code, args: Sequence[Value]) -> None:
        data, constants, io, n, first, last = args
        b, c = code.b, code.const

        def sample(i: Value, _: list[Value]) -> list[Value]:
            for stage in stages:
                b.call(stage, [data, constants, io, i, c(0), c(threads)])
            return []

        low, high = (b.udiv(b.mul(n, part), c(threads)) for part in (first, last))
        code.loop(low, high, sample)

    return kernels.get(("samples", threads), PART, emit)


def _without_denormals(code: Code, emit: Callable[[], None]) -> None:
    """What emit() emits, with denormals as zeros in it and as they were after it."""
    if "86" not in platform.machine().lower():
        emit()
        return
    module, b = code.module, code.b
    kept = b.alloca(I32, 2)
    flushed = code.at(kept, code.const(1), of=I32)
    save, restore = (
        ir.Function(module, ir.FunctionType(VOID, [POINTER]), f"llvm.x86.sse.{name}mxcsr") for name in ("st", "ld")
    )
    b.call(save, [kept])
    code.store(b.or_(code.load(kept, I32), ir.Constant(I32, FLUSH_DENORMALS)), flushed)
    b.call(restore, [flushed])
    emit()
    b.call(restore, [kept])
