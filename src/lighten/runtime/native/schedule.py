"""Schedule: how wide a tile is, who computes which part of a layer, and which layers need no barrier between them.

Accumulators, the vectors of x and a weight have to stay in registers: R · V + V + 1 of them, and one more, since LLVM
loads the next weight early. Where it does not fit, a sum is kept on the stack, which in every other process lies across
two cache lines: products of 4 x 6 vectors in 32 registers took 1.8 times as long there.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lighten.runtime.native.packed import Array


@dataclass(frozen=True)
class Target:
    """The CPU compiled for. lanes: floats a vector. registers: vectors it holds.

    barrier: operations on vectors in the time that two threads take to meet. A layer of fewer is computed by one
    thread, and a network of fewer than WAKE times as many is not shared.
    """

    lanes: int
    registers: int
    barrier: int = 2048


WIDE = 16  # lanes
Lanes = tuple[int, ...]  # of each vector of a tile
WAKE = 16  # barriers in the time that another thread takes to come


@dataclass(frozen=True)
class Access:
    """What an operation reads and writes: buffers, by their origin. is_whole: one part of it is all of it.

    columns: where it is cut by columns, where: these alone a part writes, and reads, but for what it reads `far`.
    """

    reads: frozenset[int]
    writes: frozenset[int]
    is_whole: bool = False
    columns: tuple[int, ...] = ()
    far: frozenset[int] = frozenset()

    def needs_barrier(self, earlier: "Access") -> bool:
        """Whether a thread may meet here what another did, or does, in an earlier operation."""
        if self.is_whole and earlier.is_whole:
            return False
        meets = self.reads & earlier.writes | self.writes & (earlier.reads | earlier.writes)
        if self.columns and self.columns == earlier.columns:
            meets &= self.far | earlier.far
        return bool(meets)


@dataclass(frozen=True)
class Tiles:
    """Columns in n_full tiles of v vectors, and one of v_last if it is not 0."""

    v: int
    n_full: int
    v_last: int


def target_of(features: str, lanes: int | None = None) -> Target:
    """From LLVM's list of features of the host. lanes: None = the widest that there are."""
    widest, registers = 4, 32  # NEON
    if "+avx512f" in features and "+avx512vl" in features:
        widest = 16
    elif "+avx2" in features and "+fma" in features:
        widest, registers = 8, 16
    elif "+sse2" in features:
        registers = 16
    return Target(min(lanes or widest, widest), registers)


def tile(n_columns: int, block: int, target: Target) -> Tiles:
    """Cut n_columns into tiles as wide as registers allow, and even: of 9 vectors 5 and 4 rather than 8 and 1."""
    most = max(1, (target.registers - 3) // (block + 1))
    most = min(most, 8)
    vectors = -(-n_columns // target.lanes)
    n_tiles = max(1, -(-vectors // most))
    v = -(-vectors // n_tiles)
    n_full = vectors // v if v else 0
    return Tiles(v, n_full, vectors - n_full * v)


def tilings(cuts: Sequence[int], block: int, target: Target, n_columns: int) -> dict[Lanes, list[list[int]]]:
    """The tiles of each part of the vectors of places, by the lanes of their vectors: in which vectors they start.

    cuts: the first vector of each part, then the number of vectors. n_columns: of places, up to the end of the last.
    """
    found: dict[Lanes, list[list[int]]] = {}
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        tiles = tile((high - low) * target.lanes, block, target)
        starts = [low + tiles.v * k for k in range(tiles.n_full)]
        for v, part in ((tiles.v, starts), (tiles.v_last, [high - tiles.v_last])):
            for start in part if v else []:
                last = last_lanes(n_columns, target) if start + v == cuts[-1] else target.lanes
                lanes = (*(target.lanes,) * (v - 1), last)
                found.setdefault(lanes, [[] for _ in cuts[1:]])[i].append(start)
    return found


def last_lanes(n_columns: int, target: Target) -> int:
    """Lanes of the last vector: half of them where these hold what is left. Zen 4 computes 16 lanes in two steps."""
    return WIDE // 2 if target.lanes == WIDE and 0 < n_columns % WIDE <= WIDE // 2 else target.lanes


def cut(work: Array, parts: int) -> list[int]:
    """Where to cut items into so many parts, in order and of about equal work: parts + 1 ascending numbers of items.

    work: [items], at least 0 each.
    """
    ends = np.concatenate([[0], np.cumsum(work)])
    middles = (ends[:-1] + ends[1:]) / 2  # an item goes to the part in which its middle lies
    return [*(int(np.searchsorted(middles, ends[-1] * i / parts)) for i in range(parts)), len(work)]
