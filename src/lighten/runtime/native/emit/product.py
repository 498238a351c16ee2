"""The product: R outputs x V vectors of places in registers, over the stored blocks of those R outputs.

    for each tile of V vectors, for each block of R outputs:
        acc[r][v] = bias[r]
        for p in [ptr[block], ptr[block + 1]):    acc[r][v] += value[p][r] · x[start + offset[p] + v]
        y[r][v] = act(acc[r][v] + residual[r][v]), or 0 on the margins

One load of x serves R multiplications and one broadcast of a weight V, so at R = 4, V = 6 the multiplier is the limit
and not the loads. There is no copy of windows (im2col), and zeros cost nothing, not even a test.
"""

import itertools
from collections.abc import Sequence

from llvmlite import ir

from lighten.runtime.native.emit.activation import activate
from lighten.runtime.native.emit.code import I8, I64, POINTER, Code, Kernels, Value, vector
from lighten.runtime.native.schedule import Lanes

ARGUMENTS = [POINTER] * 9 + [I64] * 6


def product(kernels: Kernels, *, r: int, lanes: Lanes, act: str, residual: bool, masked: bool) -> Value:
    """The kernel of that shape: f(x, y, residual, mask, column, ptr, offset, value, bias, y_stride,
    residual_stride, first_block, last_block, first_tile, last_tile).

    lanes: of each vector of a tile. column: int32, the first of each tile.
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, other, mask, column, ptr, offset, value, bias, y_stride, other_stride, *ends = args
        block_low, block_high, tile_low, tile_high = ends
        b, c = code.b, code.const

        def block(start: Value, o: Value) -> list[Value]:
            row = b.mul(o, c(r))

            def tap(p: Value, acc: list[Value]) -> list[Value]:
                source = code.at(x, start, code.index(offset, p))
                xs = [code.load(code.at(source, c(skip)), vector(n)) for skip, n in each_vector(lanes)]
                weights = code.at(value, b.mul(p, c(r)))
                ws = [w for i in range(r) for w in splats(code, code.load(code.at(weights, c(i))), lanes)]
                return [code.fma(w, x, total) for w, x, total in zip(ws, xs * r, acc, strict=True)]

            biases = [each for i in range(r) for each in splats(code, code.load(code.at(bias, row, c(i))), lanes)]
            acc = code.loop(code.index(ptr, o), code.index(ptr, o, c(1)), tap, biases)
            for j, (skip, n) in enumerate(each_vector(lanes)):
                keep = load_mask(code, mask, b.add(start, c(skip)), n) if masked else None
                for i in range(r):
                    place = [start, c(skip)]
                    total = acc[i * len(lanes) + j]
                    if residual:
                        at = code.at(other, b.mul(b.add(row, c(i)), other_stride), *place)
                        total = b.fadd(total, code.load(at, vector(n)))
                    total = activate(code, total, act)
                    if keep is not None:
                        total = b.select(keep, total, code.number(0.0, total))
                    code.store(total, code.at(y, b.mul(b.add(row, c(i)), y_stride), *place))
            return []

        def tile(t: Value, _: list[Value]) -> list[Value]:
            start = code.index(column, t)
            code.loop(block_low, block_high, lambda o, _: block(start, o))
            return []

        code.loop(tile_low, tile_high, tile)

    key = ("product", r, *lanes, act, *(["add"] if residual else []), *(["mask"] if masked else []))
    return kernels.get(key, ARGUMENTS, emit)


def each_vector(lanes: Lanes) -> list[tuple[int, int]]:
    """Of each vector of a tile: the columns before it, and its lanes."""
    return [*zip(itertools.accumulate(lanes, initial=0), lanes, strict=False)]


def splats(code: Code, scalar: Value, lanes: Lanes) -> list[Value]:
    """scalar in every lane of each vector of a tile."""
    made = {n: code.splat(scalar, n) for n in dict.fromkeys(lanes)}
    return [made[n] for n in lanes]


def load_mask(code: Code, mask: Value, column: Value, lanes: int) -> Value:
    """Which of the lanes from column on are places: a vector of bits."""
    loaded = code.load(code.at(mask, column, of=I8), vector(lanes, I8))
    return code.b.icmp_signed("!=", loaded, ir.Constant(loaded.type, [0] * lanes))
