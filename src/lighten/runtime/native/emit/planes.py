"""Moving and reducing: strided copies, gathering, looking up, elements, reductions over places."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from lighten.runtime.native.emit.activation import activate
from lighten.runtime.native.emit.code import F32, I64, POINTER, Code, Kernels, Value, vector
from lighten.runtime.native.emit.product import load_mask

AXES = 3


def copy(kernels: Kernels, *, step: int, to_step: int) -> Value:
    """y[i, j, k] = x[i, j, k]; f(x, y, low, high, n1, n2, two strides of x, two of y).

    i runs over [low, high). The strides of the last axis are part of the kernel: small ones become vector loads.
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, low, high, *rest = args
        sizes, x_strides, y_strides = rest[:2], rest[2:4], rest[4:6]
        b, c = code.b, code.const

        def nest(depth: int, source: Value, target: Value) -> None:
            first, last = (low, high) if depth == 0 else (c(0), sizes[depth - 1])

            def body(i: Value, _: list[Value]) -> list[Value]:
                if depth == AXES - 1:
                    code.store(code.load(code.at(source, b.mul(i, c(step)))), code.at(target, b.mul(i, c(to_step))))
                else:
                    to = code.at(target, b.mul(i, y_strides[depth]))
                    nest(depth + 1, code.at(source, b.mul(i, x_strides[depth])), to)
                return []

            code.loop(first, last, body)

        nest(0, x, y)

    return kernels.get(("copy", step, to_step), [POINTER] * 2 + [I64] * 8, emit)


def gather(kernels: Kernels) -> Value:
    """y[row, line, i] = data[table[...]], table: int32, one after another; f(data, y, table, low, high, lines, width,
    row_stride, pitch).

    Rows run over [low, high).
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        data, y, table, low, high, lines, width, row_stride, pitch = args
        b, c = code.b, code.const

        def line(k: Value, _: list[Value]) -> list[Value]:
            first = b.mul(k, width)
            to = code.at(y, b.mul(b.udiv(k, lines), row_stride), b.mul(b.urem(k, lines), pitch))

            def number(i: Value, _: list[Value]) -> list[Value]:
                code.store(code.load(code.at(data, code.index(table, first, i))), code.at(to, i))
                return []

            code.loop(c(0), width, number)
            return []

        code.loop(b.mul(low, lines), b.mul(high, lines), line)

    return kernels.get(("gather",), [POINTER] * 3 + [I64] * 6, emit)


def embedding(kernels: Kernels) -> Value:
    """y[feature, token] = table[x[token], feature]; f(x, table, y, low, high, entries, features, x_stride, y_stride).

    Tokens run over [low, high). One that is no entry gives NaN, and is not looked up.
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, table, y, low, high, entries, features, x_stride, y_stride = args
        b, c = code.b, code.const

        def token(t: Value, _: list[Value]) -> list[Value]:
            number, zero = code.load(code.at(x, b.mul(t, x_stride))), F32(0.0)
            is_high_enough = b.fcmp_ordered(">=", number, zero)
            is_entry = b.and_(is_high_enough, b.fcmp_ordered("<", number, b.sitofp(entries, F32)))
            source = code.at(table, b.mul(b.fptosi(b.select(is_entry, number, zero), I64), features))

            def feature(f: Value, _: list[Value]) -> list[Value]:
                value = b.select(is_entry, code.load(code.at(source, f)), F32(float("nan")))
                code.store(value, code.at(y, b.mul(f, y_stride), t))
                return []

            code.loop(c(0), features, feature)
            return []

        code.loop(low, high, token)

    return kernels.get(("embedding",), [POINTER] * 3 + [I64] * 6, emit)


def elements(kernels: Kernels, *, lanes: int, op: str, act: str, spread: tuple[bool, ...], masked: bool) -> Value:
    """y = act(op of the inputs), vector by vector; f(inputs, y, mask, low, high, n_vectors, their strides, y_stride).

    Rows run over [low, high). spread: for each input, whether it has one number a row, its stride apart.
    """
    n = len(spread)

    def emit(code: Code, args: Sequence[Value]) -> None:
        inputs, (y, mask, low, high, n_vectors), strides, y_stride = (
            args[:n],
            args[n : n + 5],
            args[n + 5 : -1],
            args[-1],
        )
        b, c = code.b, code.const
        kind = vector(lanes)

        def row(r: Value, _: list[Value]) -> list[Value]:
            rows = [code.at(at, b.mul(r, stride)) for at, stride in zip(inputs, strides, strict=True)]
            single = [code.splat(code.load(at), lanes) if wide else None for at, wide in zip(rows, spread, strict=True)]

            def column(j: Value, _: list[Value]) -> list[Value]:
                start = b.mul(j, c(lanes))
                terms = [
                    code.load(code.at(at, start), kind) if one is None else one
                    for at, one in zip(rows, single, strict=True)
                ]
                value = activate(code, _combine(code, op, *terms), act)
                if masked:
                    value = b.select(load_mask(code, mask, start, lanes), value, code.number(0.0, value))
                code.store(value, code.at(y, b.mul(r, y_stride), start))
                return []

            code.loop(c(0), n_vectors, column)
            return []

        code.loop(low, high, row)

    key = ("elements", lanes, op, act, *("spread" if wide else "" for wide in spread), *(["mask"] if masked else []))
    return kernels.get(key, [POINTER] * (n + 2) + [I64] * (n + 4), emit)


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _combine(code: Code, op: str, a: Value, *others: Value) -> Value:
    b = code.b
    match op, others:
        case "none", ():
            return a
        case "add", (other,):
            return b.fadd(a, other)
        case "sub", (other,):
            return b.fsub(a, other)
        case "mul", (other,):
            return b.fmul(a, other)
        case "div", (other,):
            return b.fdiv(a, other)
        case "max" | "min", (other,):
            return code.intrinsic(f"{op}imum", a, other)
        case "where", (yes, no):
            return b.select(b.fcmp_unordered("!=", a, code.number(0.0, a)), yes, no)
        case _, (other,):
            compare = b.fcmp_unordered if op == "ne" else b.fcmp_ordered  # NaN is unequal to all, itself included
            return b.select(compare(COMPARISONS[op], a, other), code.number(1.0, a), code.number(0.0, a))
    raise AssertionError(op)


# What a reduction begins with, and its step.
REDUCTIONS: dict[str, tuple[float, Callable[[Code, Value, Value], Value]]] = {
    "mean": (0.0, lambda code, a, b: code.b.fadd(a, b)),
    "sum": (0.0, lambda code, a, b: code.b.fadd(a, b)),
    "max": (float("-inf"), lambda code, a, b: code.intrinsic("maximum", a, b)),
    "min": (float("inf"), lambda code, a, b: code.intrinsic("minimum", a, b)),
}


def reduce_places(kernels: Kernels, *, how: str, lanes: int) -> Value:
    """Of each row's places; f(x, y, mask, low, high, n_vectors, x_stride, y_stride, n_places)."""
    first, step = REDUCTIONS[how]

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, mask, low, high, n_vectors, x_stride, y_stride, n_places = args
        b, c = code.b, code.const
        nothing = code.splat(ir.Constant(F32, first), lanes)

        def row(r: Value, _: list[Value]) -> list[Value]:
            def column(j: Value, acc: list[Value]) -> list[Value]:
                start = b.mul(j, c(lanes))
                value = code.load(code.at(x, b.mul(r, x_stride), start), vector(lanes))
                return [step(code, acc[0], b.select(load_mask(code, mask, start, lanes), value, nothing))]

            (total,) = code.loop(c(0), n_vectors, column, [nothing])
            lane = [b.extract_element(total, c(i)) for i in range(lanes)]
            while len(lane) > 1:  # in a tree, so that rounding grows with the logarithm
                lane = [step(code, p, q) for p, q in zip(lane[::2], lane[1::2], strict=True)]
            found = b.fdiv(lane[0], b.sitofp(n_places, F32)) if how == "mean" else lane[0]
            code.store(found, code.at(y, b.mul(r, y_stride)))
            return []

        code.loop(low, high, row)

    return kernels.get((how, "places", lanes), [POINTER] * 3 + [I64] * 6, emit)
