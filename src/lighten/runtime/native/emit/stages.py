"""Stages: functions of threads' parts, within which no part needs what another one writes, so that threads have to meet
only between them.

Every address is a constant distance from one of two bases, data (activations) and constants (weights, offsets, masks),
both of which are sized here; nothing in it was read from a file unchecked.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from lighten.runtime.native.emit.blob import Blob
from lighten.runtime.native.emit.code import I8, I64, VOID, Code, Kernels, Value
from lighten.runtime.native.emit.team import PART
from lighten.runtime.native.layout import Place
from lighten.runtime.native.packed import Array
from lighten.runtime.native.schedule import Access, Lanes, Target, cut, tilings


class Stages:
    """`stages` are to be called in order; `code` writes the last of them.

    work: of a sample, in operations on vectors, roughly.
    """

    def __init__(self, kernels: Kernels, blob: Blob, target: Target, threads: int) -> None:
        self.kernels, self.blob, self.target, self.n_threads = kernels, blob, target, threads
        self.kept: dict[tuple[Any, ...], Array] = {}
        self.stages: list[Value] = []
        self.work = 0.0
        self._open_stage()

    def _open_stage(self) -> None:
        function = ir.Function(self.kernels.module, ir.FunctionType(VOID, PART), f"stage_{len(self.stages)}")
        function.linkage = "internal"
        self.stages.append(function)
        self.code = Code(function)
        self.data, self.constants, self.io, self.sample, self.first, self.last = function.args
        self.accesses: list[Access] = []

    def _begin(
        self,
        reads: Sequence[Place],
        out: Place | None,
        *work: Array,
        over: Place | None = None,
        far: Sequence[Place] | None = None,
    ) -> list[list[int]]:
        """Begin an operation, in a stage of its own where threads have to meet before it.

        work: of each item, for one or several kernels. over: what every part overwrites for itself. far: where items
        are vectors of columns, what is read of other columns than are written. Returns where to cut the items of each.
        """
        total = float(sum(each.sum() for each in work))
        self.work += total
        writes = frozenset(place.origin for place in (out, over) if place is not None)
        inputs, others = (frozenset(place.origin for place in places) for places in (reads, far or ()))

        def access(cuts: list[list[int]], is_whole: bool) -> Access:
            return Access(inputs, writes, is_whole, () if far is None else tuple(cuts[0]), others)

        def waits(access: Access) -> bool:
            return any(access.needs_barrier(earlier) for earlier in self.accesses)

        n = self.n_threads
        cuts = [cut(each, n) for each in work]
        chosen = access(cuts, n == 1)
        # Little work is one thread's, but where it goes on with columns that a thread has.
        if total < self.target.barrier and (far is None or len(work[0]) < n or waits(chosen)):
            cuts = [[0] + [len(each)] * n for each in work]
            chosen = access(cuts, is_whole=True)
        if waits(chosen):
            self.code.b.ret_void()
            self._open_stage()
        self.accesses.append(chosen)
        return cuts

    def _range(self, cuts: Sequence[int]) -> list[Value]:
        """The first item of part `first`, and that of part `last`."""
        if self.n_threads == 1:
            return [self._i(cuts[0]), self._i(cuts[-1])]
        table = self._const(self._keep(("cuts", *cuts), np.array(cuts, np.int64)))
        return [self.code.load(self.code.at(table, part, of=I64), I64) for part in (self.first, self.last)]

    def _tiles(
        self, out: Place, cuts: Sequence[int], block: int, target: Target
    ) -> Iterator[tuple[Lanes, Value, list[int]]]:
        """For each kind of tiles: their first columns, part after part, and how many there are before each part."""
        for lanes, tiles in tilings(cuts, block, target, out.columns).items():
            columns = np.array([start * target.lanes for part in tiles for start in part], np.int32)
            yield lanes, self._const(columns), np.cumsum([0, *map(len, tiles)]).tolist()

    def _at(self, place: Place, skip: int = 0) -> Value:
        return self.code.at(self.data, self._i(place.origin + skip))

    def _const(self, array: Array) -> Value:
        return self.code.at(self.constants, self._i(self.blob.add(array)), of=I8)

    def _is_masked(self, out: Place) -> bool:
        """Whether vectors reach into margins, which have to be written as zeros: between lines, or after the last."""
        return out.clean and not (out.is_solid and out.columns % self.target.lanes == 0)

    def _mask(self, place: Place) -> Value:
        length = _up(place.columns, self.target.lanes)
        key = (place.pitch, place.tensor.height, place.tensor.width)
        return self._const(self._keep(key, place.valid(length)))

    def _keep(self, key: tuple[Any, ...], array: Array) -> Array:
        """array, or the one like it that was there first."""
        return self.kept.setdefault(key, array)

    def _ints(self, values: Array) -> Array:
        assert values.size == 0 or np.abs(values).max() < 2**31
        return values.astype(np.int32)

    def _i(self, value: int) -> Value:
        return ir.Constant(I64, int(value))

    def _call(self, kernel: Value, args: Sequence[Value]) -> None:
        self.code.b.call(kernel, args)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
