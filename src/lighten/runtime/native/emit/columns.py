"""Along the rows of each place: layer norm, softmax and reductions, V vectors of places at once.

Each kernel is f(x, y, …, mask, column, …, first_tile, last_tile), column: int32, the first of each tile. A thread has
tiles of its own, and no place needs another, so that tiles change nothing in the numbers.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from lighten.runtime.native.emit.activation import exp
from lighten.runtime.native.emit.code import F32, I64, POINTER, Code, Kernels, Value, vector
from lighten.runtime.native.emit.planes import REDUCTIONS
from lighten.runtime.native.emit.product import each_vector, load_mask, splats
from lighten.runtime.native.schedule import Lanes

Vectors = list[Value]


class _Tile:
    """V vectors of places from column `start` on, as loops over rows see them."""

    def __init__(self, code: Code, mask: Value, start: Value, lanes: Lanes, masked: bool) -> None:
        self.code, self.start, self.lanes, self.each = code, start, lanes, each_vector(lanes)
        keep = [load_mask(code, mask, code.b.add(start, code.const(skip)), n) for skip, n in self.each if masked]
        self.keep = keep if masked else None

    def numbers(self, value: float) -> Vectors:
        """value in every lane of each vector."""
        return self.splats(F32(value))

    def splats(self, scalar: Value) -> Vectors:
        return splats(self.code, scalar, self.lanes)

    def fold(
        self, low: Value, high: Value, of: Value, stride: Value, first: float, step: Callable[..., Value]
    ) -> Vectors:
        """What step(row, j, carried, x) makes, row after row, of x [rows, places]; it begins with `first`."""

        def body(r: Value, carried: Vectors) -> Vectors:
            xs = self.load(of, r, stride)
            return [step(r, j, each, x) for j, (each, x) in enumerate(zip(carried, xs, strict=True))]

        return self.code.loop(low, high, body, self.numbers(first))

    def load(self, of: Value, row: Value, stride: Value) -> Vectors:
        at = self.code.at(of, self.code.b.mul(row, stride), self.start)
        return [self.code.load(self.code.at(at, self.code.const(skip)), vector(n)) for skip, n in self.each]

    def store(self, values: Vectors, to: Value, row: Value, stride: Value) -> None:
        """Margins become 0 where the tile is masked."""
        at = self.code.at(to, self.code.b.mul(row, stride), self.start)
        for j, value in enumerate(values):
            if self.keep is not None:
                value = self.code.b.select(self.keep[j], value, self.code.number(0.0, value))
            self.code.store(value, self.code.at(at, self.code.const(self.each[j][0])))


def softmax(kernels: Kernels, *, lanes: Lanes, masked: bool) -> Value:
    """f(x, y, mask, column, groups, rows, x_stride, y_stride, first_tile, last_tile); rows: of a group."""

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, mask, column, groups, rows, x_stride, y_stride, low, high = args
        b = code.b

        def group(g: Value, tile: _Tile) -> None:
            first = b.mul(g, rows)
            last = b.add(first, rows)
            # A NaN need not be the largest: it comes back in its own exponential, and so in the sum.
            top = tile.fold(
                first, last, x, x_stride, float("-inf"), lambda r, j, m, x: b.select(b.fcmp_ordered(">", x, m), x, m)
            )

            def power(r: Value, sums: Vectors) -> Vectors:
                xs = tile.load(x, r, x_stride)
                powers = [exp(code, b.fsub(each, most)) for each, most in zip(xs, top, strict=True)]
                tile.store(powers, y, r, y_stride)
                return [b.fadd(total, each) for total, each in zip(sums, powers, strict=True)]

            sums = code.loop(first, last, power, tile.numbers(0.0))
            parts = [b.fdiv(code.number(1.0, total), total) for total in sums]

            def scale(r: Value, _: Vectors) -> Vectors:
                ys = tile.load(y, r, y_stride)
                tile.store([b.fmul(each, part) for each, part in zip(ys, parts, strict=True)], y, r, y_stride)
                return []

            code.loop(first, last, scale)

        def all_groups(t: Value, _: Vectors) -> Vectors:
            tile = _Tile(code, mask, code.index(column, t), lanes, masked)

            def one(g: Value, _: Vectors) -> Vectors:
                group(g, tile)
                return []

            code.loop(code.const(0), groups, one)
            return []

        code.loop(low, high, all_groups)

    return kernels.get(("softmax", *lanes, *(["mask"] if masked else [])), [POINTER] * 4 + [I64] * 6, emit)


def reduce_rows(kernels: Kernels, *, how: str, lanes: Lanes, masked: bool) -> Value:
    """f(x, y, mask, column, groups, rows, x_stride, y_stride, first_tile, last_tile); rows: of a group."""
    first, step = REDUCTIONS[how]

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, mask, column, groups, rows, x_stride, y_stride, low, high = args
        b = code.b

        def all_groups(t: Value, _: Vectors) -> Vectors:
            tile = _Tile(code, mask, code.index(column, t), lanes, masked)

            def group(g: Value, _: Vectors) -> Vectors:
                start = b.mul(g, rows)
                found = tile.fold(start, b.add(start, rows), x, x_stride, first, lambda r, j, s, x: step(code, s, x))
                if how == "mean":
                    counts = tile.splats(b.sitofp(rows, F32))
                    found = [b.fdiv(each, count) for each, count in zip(found, counts, strict=True)]
                tile.store(found, y, g, y_stride)
                return []

            code.loop(code.const(0), groups, group)
            return []

        code.loop(low, high, all_groups)

    return kernels.get((how, "rows", *lanes, *(["mask"] if masked else [])), [POINTER] * 4 + [I64] * 6, emit)


def norm(kernels: Kernels, *, lanes: Lanes, masked: bool, centered: bool) -> Value:
    """f(x, y, scale, shift, mask, column, eps, rows, x_stride, y_stride, scale_stride, shift_stride, first_tile,
    last_tile)."""

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, scale, shift, mask, column, eps, rows, x_stride, y_stride, scale_stride, shift_stride, low, high = args
        b, zero = code.b, code.const(0)

        def all_rows(t: Value, _: Vectors) -> Vectors:
            tile = _Tile(code, mask, code.index(column, t), lanes, masked)
            shares = tile.splats(b.fdiv(ir.Constant(F32, 1.0), b.sitofp(rows, F32)))
            total = tile.numbers(0.0)
            if centered:
                total = tile.fold(zero, rows, x, x_stride, 0.0, lambda r, j, s, x: b.fadd(s, x))
            mean = [b.fmul(each, share) for each, share in zip(total, shares, strict=True)]

            def square(r: Value, j: int, carried: Value, x: Value) -> Value:
                distance = b.fsub(x, mean[j])
                return code.fma(distance, distance, carried)

            squares = tile.fold(zero, rows, x, x_stride, 0.0, square)
            variance = [code.fma(*each) for each in zip(squares, shares, tile.splats(eps), strict=True)]
            factor = [b.fdiv(code.number(1.0, each), code.intrinsic("sqrt", each)) for each in variance]

            def write(r: Value, _: Vectors) -> Vectors:
                times = tile.splats(code.load(code.at(scale, b.mul(r, scale_stride))))
                plus = tile.splats(code.load(code.at(shift, b.mul(r, shift_stride))))
                xs = tile.load(x, r, x_stride)
                unit = [b.fmul(b.fsub(each, m), f) for each, m, f in zip(xs, mean, factor, strict=True)]
                tile.store([code.fma(*each) for each in zip(unit, times, plus, strict=True)], y, r, y_stride)
                return []

            code.loop(zero, rows, write)
            return []

        code.loop(low, high, all_rows)

    kinds = [POINTER] * 6 + [F32] + [I64] * 7
    key = ("norm" if centered else "rms", *lanes, *(["mask"] if masked else []))
    return kernels.get(key, kinds, emit)
