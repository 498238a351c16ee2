"""Schedule: how wide a tile is.

Accumulators and the vectors of x have to stay in registers: R · V + V + 1 of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """The CPU compiled for. lanes: floats a vector. registers: vectors it holds."""

    lanes: int
    registers: int


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
    most = max(1, (target.registers - 2) // (block + 1))
    most = min(most, 8)
    vectors = -(-n_columns // target.lanes)
    n_tiles = -(-vectors // most)
    v = -(-vectors // n_tiles)
    n_full = vectors // v
    return Tiles(v, n_full, vectors - n_full * v)
