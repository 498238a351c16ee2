"""Threads that share the parts of a step: each part is claimed by one of them, and all wait until all parts are done.

Every part has a number in a *cell* of its own, which only grows. In a step that begins at `epoch` a cell holds

    epoch: nobody's yet        epoch + 1: someone computes it        epoch + 2: done, and free for the next step

A thread claims its own part first, then any that nobody has begun. So no thread is needed: one that has no core claims
nothing, and the others do its parts; one that arrives after the end finds that every number has gone past its own, and
touches nothing. A thread waits only for parts that another is computing, which waits for nobody.
"""

import os
import platform
from collections.abc import Callable, Sequence

from llvmlite import ir

from lighten.runtime.native.emit.code import I32, I64, POINTER, VOID, Code, Kernels, Value, declared

CELL = 8  # int64 to a cell: a cache line
PART = [POINTER] * 3 + [I64] * 3  # f(data, constants, io, sample, first_part, last_part)
SPINS = 2**13  # looks, with a pause of the CPU after each: 100 to 400 microseconds, far longer than a barrier takes
NAP_US = 50


def step(kernels: Kernels, threads: int) -> Value:
    """f(part, data, constants, io, sample, thread, cells, epoch): see the module. part: a function of PART."""
    part_type = ir.PointerType(ir.FunctionType(VOID, PART))

    def emit(code: Code, args: Sequence[Value]) -> None:
        part, data, constants, io, sample, thread, cells, epoch = args
        b, c = code.b, code.const
        done = b.add(epoch, c(2))

        def cell(i: Value) -> Value:
            return code.at(cells, b.mul(i, c(CELL)), of=I64)

        def claim(k: Value, _: list[Value]) -> list[Value]:
            i = b.urem(b.add(thread, k), c(threads))
            is_free = b.icmp_signed("==", b.load_atomic(cell(i), "monotonic", 8, typ=I64), epoch)
            with b.if_then(is_free):  # looked at first, since a failed exchange takes the line from its owner too
                is_mine = b.extract_value(b.cmpxchg(cell(i), epoch, b.add(epoch, c(1)), "acquire", "monotonic"), 1)
                with b.if_then(is_mine):
                    b.call(part, [data, constants, io, sample, i, b.add(i, c(1))])
                    b.atomic_rmw("xchg", cell(i), done, "release")
            return []

        def wait(i: Value, _: list[Value]) -> list[Value]:
            spin(code, lambda: b.icmp_signed(">=", b.load_atomic(cell(i), "acquire", 8, typ=I64), done), sleeps=True)
            return []

        code.loop(c(0), c(threads), claim)
        code.loop(c(0), c(threads), wait)

    return kernels.get(("step", threads), [part_type, *[POINTER] * 3, I64, I64, POINTER, I64], emit)


def linger(kernels: Kernels) -> Value:
    """f(bell, heard): wait, not long, for the number at bell to be another than heard."""

    def emit(code: Code, args: Sequence[Value]) -> None:
        bell, heard = args
        b = code.b
        spin(code, lambda: b.icmp_signed("!=", b.load_atomic(bell, "monotonic", 8, typ=I64), heard), sleeps=False)

    return kernels.get(("linger",), [POINTER, I64], emit)


def spin(code: Code, is_over: Callable[[], Value], *, sleeps: bool) -> None:
    """Emit a wait until is_over() holds: SPINS looks, and then the end, or naps between further looks.

    A thread whose wait is long waits for one that has lost its core, so it leaves it its own. It naps rather than
    yield: Linux takes a whole slice of time from a thread for each yield, and after some it gets no core for long.
    """
    b, function = code.b, code.function
    head, again, nap, over = (function.append_basic_block(name) for name in ("look", "again", "nap", "over"))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    looks = b.phi(I64)
    looks.add_incoming(code.const(0), before)
    b.cbranch(is_over(), over, again)
    b.position_at_end(again)
    if "86" in platform.machine():
        b.call(declared(code, "llvm.x86.sse2.pause", VOID), [])
    more = b.add(looks, code.const(1))
    looks.add_incoming(more, again)
    b.cbranch(b.icmp_signed("<", more, code.const(SPINS)), head, nap if sleeps else over)
    b.position_at_end(nap)
    if os.name == "posix":
        b.call(declared(code, "usleep", I32, I32), [ir.Constant(I32, NAP_US)])
    looks.add_incoming(more, nap)
    b.branch(head)
    b.position_at_end(over)
