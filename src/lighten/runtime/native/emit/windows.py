"""Windows: what every row makes of its own places, as depthwise convolutions and pools do.

    for each row, for each block of L lines of y, for each vector of columns:
        acc[l] = bias
        for each line of x that the block needs, for kx:
            load x once, with its stride;    acc[l] += weight[ky][kx] · x   for every l and ky that meet in that line
        y[l] = act(acc[l] + residual[l])

There is nothing to skip and each weight has a row to itself, so unlike in a product the loads are the limit: a vector
that starts anywhere crosses a cache line and takes two. A block of 4 lines halves them, as windows overlap, and more
lines save more, where registers hold them. A stride of 2 along the columns takes every other number of two vectors; the
product would need x written in phases before. The last block ends where y does, and so does the last vector, where it
is not the only one: some places are made twice. Only where a vector is wider than y is something written outside of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from lighten.runtime.native.emit.activation import activate
from lighten.runtime.native.emit.code import F32, I32, I64, POINTER, Code, Kernels, Value, vector

LINES, MOST_LINES = 4, 8  # of a block: as many as 16 registers hold in a window of 3 x 3, and as pay with more
UNROLLED = 25  # weights, which are kept in registers; with more the window is a loop, and blocks have one line


@dataclass(frozen=True)
class Window:
    """Lines before columns. how: "sum" of the places times weights, "mean" or "max"."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    how: str

    @property
    def size(self) -> int:
        """Weights of a row."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_unrolled(self) -> bool:
        """Whether its weights stay in registers."""
        return self.size <= UNROLLED


def lines_of(window: Window, height: int, registers: int) -> tuple[int, int]:
    """How many blocks the lines of y make, and how many lines each has: sums, weights and a line of x in registers."""
    if not window.is_unrolled:
        return height, 1
    most = min(MOST_LINES, max(LINES, registers - window.size - window.kernel[1]))
    n_blocks = -(-height // most)
    return n_blocks, -(-height // n_blocks)


def windows(kernels: Kernels, window: Window, *, lines: int, lanes: int, act: str, residual: bool) -> Value:
    """The kernel: f(x, y, residual, weight, bias, first, last, n_blocks, last_line, n_vectors, last_column, x_row,
    x_pitch, y_row, y_pitch, residual_row, residual_pitch).

    x: the first place of row 0's first window. weight: [rows, kernel's lines · columns], bias: [rows], read by "sum"
    alone. first, last: of the items (row, block). last_line, last_column: where the last block and vector start.
    """
    (sy, sx), (dy, dx), (_, width) = window.stride, window.dilation, window.kernel

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, other, weight, bias, low, high, n_blocks, last_line, n_vectors, last_column, *sizes = args
        x_row, x_pitch, y_row, y_pitch, other_row, other_pitch = sizes
        b, c = code.b, code.const

        def take(acc: Value, w: Value, value: Value) -> Value:
            if window.how == "max":
                return code.intrinsic("maximum", acc, value)
            return code.fma(w, value, acc)

        def item(i: Value, _: list[Value]) -> list[Value]:
            row, line = b.udiv(i, n_blocks), code.least(b.mul(b.urem(i, n_blocks), c(lines)), last_line)
            source = code.at(x, b.mul(row, x_row), b.mul(b.mul(line, c(sy)), x_pitch))
            weights = code.at(weight, b.mul(row, c(window.size)))
            first = _first(code, window, code.at(bias, row), lanes)

            def weight_of(tap: Value) -> Value:
                if window.how == "sum":
                    return code.splat(code.load(code.at(weights, tap)), lanes)
                return code.number(1 / window.size, first)

            kept = [weight_of(c(tap)) for tap in range(window.size)] if window.is_unrolled else []

            def unrolled(near: Value) -> list[Value]:
                acc = [first] * lines
                for distance in sorted({sy * k + dy * ky for k in range(lines) for ky in range(window.kernel[0])}):
                    start = code.at(near, b.mul(c(distance), x_pitch))
                    xs = _strided(code, start, [dx * kx for kx in range(width)], sx, lanes)
                    for k in range(lines):
                        ky, rest = divmod(distance - sy * k, dy)
                        if rest == 0 and 0 <= ky < window.kernel[0]:
                            for w, value in zip(kept[ky * width :], xs, strict=False):
                                acc[k] = take(acc[k], w, value)
                return acc

            def in_loops(near: Value) -> list[Value]:
                def one(tap: Value, acc: list[Value]) -> list[Value]:
                    ky, kx = b.udiv(tap, c(width)), b.urem(tap, c(width))
                    start = code.at(near, b.mul(b.mul(ky, c(dy)), x_pitch), b.mul(kx, c(dx)))
                    (value,) = _strided(code, start, [0], sx, lanes)
                    return [take(acc[0], weight_of(tap), value)]

                return code.loop(c(0), c(window.size), one, [first])

            def column(j: Value, _: list[Value]) -> list[Value]:
                at = code.least(b.mul(j, c(lanes)), last_column)
                near = code.at(source, b.mul(at, c(sx)))
                for k, total in enumerate(unrolled(near) if window.is_unrolled else in_loops(near)):
                    down = b.add(line, c(k))
                    if residual:
                        place = code.at(other, b.mul(row, other_row), b.mul(down, other_pitch), at)
                        total = b.fadd(total, code.load(place, vector(lanes)))
                    place = code.at(y, b.mul(row, y_row), b.mul(down, y_pitch), at)
                    code.store(activate(code, total, act), place)
                return []

            code.loop(c(0), n_vectors, column)
            return []

        code.loop(low, high, item)

    shape = (*window.kernel, *window.stride, *window.dilation)
    key = ("windows", window.how, *shape, lines, lanes, act, *(["add"] if residual else []))
    return kernels.get(key, [POINTER] * 5 + [I64] * 12, emit)


def _first(code: Code, window: Window, bias: Value, lanes: int) -> Value:
    if window.how == "sum":
        return code.splat(code.load(bias), lanes)
    return code.splat(ir.Constant(F32, float("-inf") if window.how == "max" else 0.0), lanes)


def _strided(code: Code, start: Value, columns: Sequence[int], stride: int, lanes: int) -> list[Value]:
    """For each of columns, the vector of x[start + column + stride · lane]."""
    b, c, kind = code.b, code.const, vector(lanes)
    if stride == 1 or lanes == 1:
        return [code.load(code.at(start, c(column)), kind) for column in columns]
    if stride > 2:
        return [_gathered(code, code.at(start, c(column)), stride, lanes) for column in columns]
    found: dict[int, Value] = {}
    for column in columns:
        if column in found:
            continue
        pair = [code.load(code.at(start, c(column + k * lanes)), kind) for k in (0, 1)]
        for odd in (0, 1):  # the odd ones are those of the next column, if that is asked for
            picked = ir.Constant(ir.VectorType(I32, lanes), [2 * lane + odd for lane in range(lanes)])
            found.setdefault(column + odd, b.shuffle_vector(*pair, picked))
    return [found[column] for column in columns]


def _gathered(code: Code, start: Value, stride: int, lanes: int) -> Value:
    value = ir.Constant(vector(lanes), ir.Undefined)
    for lane in range(lanes):
        number = code.load(code.at(start, code.const(lane * stride)))
        value = code.b.insert_element(value, number, ir.Constant(I32, lane))
    return value
