"""The product for one place, vectors along the outputs: all weights are read once, and that is what takes time.

    for each block of R outputs:
        acc[r] = sum over p in [ptr[block], ptr[block + 1])   value[p][r] · x[offset[p]]
        y[r] = act(acc[r] · scale[r] + bias[r] + residual[r])

So weights are read in the type that they are stored in, and become float32 in registers: an int8 is a quarter of the
bytes. Codes are whole numbers, so that one multiplication by the scale, at the end, is as exact as one for each weight.
"""

from collections.abc import Sequence

from llvmlite import ir

from lighten.runtime.native.emit.activation import activate
from lighten.runtime.native.emit.code import F32, I8, I16, I32, I64, POINTER, Code, Kernels, Value, vector

STORED = {"float32": F32, "uint16": I16, "int8": I8}
OFFSETS = {"int32": I32, "uint16": I16}
N_SUMS = 4  # hide the latency of the multiplier


def matvec(kernels: Kernels, *, r: int, act: str, residual: bool, stored: str, offsets: str) -> Value:
    """f(x, y, residual, ptr, offset, value, bias, scale, first_block, last_block).

    stored: the type of values, one of STORED; uint16 is bfloat16, and only int8 has a scale. offsets: theirs.
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, y, other, ptr, offset, value, bias, scale, low, high = args
        b, c = code.b, code.const
        kind, is_scaled = vector(r), stored == "int8"

        def term(p: Value, acc: Value) -> Value:
            scalar = code.load(code.at(x, code.index(offset, p, of=OFFSETS[offsets])))
            weights = code.load(code.at(value, b.mul(p, c(r)), of=STORED[stored]), vector(r, STORED[stored]))
            return code.fma(code.splat(scalar, r), _floats(code, weights, r), acc)

        def block(o: Value, _: list[Value]) -> list[Value]:
            begin, end = code.index(ptr, o), code.index(ptr, o, c(1))
            row = b.mul(o, c(r))
            zero, biases = code.splat(ir.Constant(F32, 0.0), r), code.load(code.at(bias, row), kind)
            n_full = b.udiv(b.sub(end, begin), c(N_SUMS))

            def several(i: Value, acc: list[Value]) -> list[Value]:
                p = b.add(begin, b.mul(i, c(N_SUMS)))
                return [term(b.add(p, c(k)), a) for k, a in enumerate(acc)]

            acc = code.loop(c(0), n_full, several, [zero if is_scaled else biases] + [zero] * (N_SUMS - 1))
            rest = b.add(begin, b.mul(n_full, c(N_SUMS)))
            (first,) = code.loop(rest, end, lambda p, one: [term(p, one[0])], acc[:1])
            total = b.fadd(b.fadd(first, acc[1]), b.fadd(acc[2], acc[3]))
            if is_scaled:
                total = code.fma(total, code.load(code.at(scale, row), kind), biases)
            if residual:
                total = b.fadd(total, code.load(code.at(other, row), kind))
            code.store(activate(code, total, act), code.at(y, row))
            return []

        code.loop(low, high, block)

    key = ("matvec", r, act, stored, offsets, *(["add"] if residual else []))
    return kernels.get(key, [POINTER] * 8 + [I64] * 2, emit)


def _floats(code: Code, weights: Value, lanes: int) -> Value:
    """Stored weights as float32."""
    element = weights.type.element if lanes > 1 else weights.type
    if element is F32:
        return weights
    if element is I8:
        return code.b.sitofp(weights, vector(lanes))
    wide = code.b.zext(weights, vector(lanes, I32))
    return code.b.bitcast(code.b.shl(wide, code.splat(ir.Constant(I32, 16), lanes)), vector(lanes))
