"""Activations on scalars and vectors, NaN in, NaN out.

exp: Cephes' expf, S. Moshier, 1984–1992: 2^n · p(r), |r| <= ln 2 / 2, about 1e-7 relative.
erf: Abramowitz and Stegun, 7.1.26: 1.5e-7 absolute.
"""

import math

from llvmlite import ir

from lighten.runtime.native.emit.code import I32, Code, Value, vector

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUNDER = 1.5 * 2**23  # adding it leaves the nearest integer in the low bits
_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def activate(code: Code, x: Value, act: str) -> Value:
    """act of x, one of program.ACTIVATIONS."""
    b, one = code.b, code.number(1.0, x)
    match act:
        case "none":
            return x
        case "relu":
            return code.clamp(x, 0.0, None)
        case "relu6":
            return code.clamp(x, 0.0, 6.0)
        case "hardsigmoid" | "hardswish":
            gate = b.fmul(code.clamp(b.fadd(x, code.number(3.0, x)), 0.0, 6.0), code.number(1 / 6, x))
            return gate if act == "hardsigmoid" else b.fmul(x, gate)
        case "sigmoid":
            return b.fdiv(one, b.fadd(one, exp(code, _negative(code, x))))
        case "silu":
            return b.fdiv(x, b.fadd(one, exp(code, _negative(code, x))))
        case "tanh":
            return _tanh(code, x)
        case "gelu":
            half = b.fmul(x, code.number(0.5, x))
            return code.fma(half, _erf(code, b.fmul(x, code.number(math.sqrt(0.5), x))), half)
        case "gelu_tanh":
            half, square = b.fmul(x, code.number(0.5, x)), b.fmul(x, x)
            inner = code.fma(b.fmul(square, x), code.number(0.044715, x), x)
            return code.fma(half, _tanh(code, b.fmul(inner, code.number(math.sqrt(2 / math.pi), x))), half)
        case _:
            raise AssertionError(act)


def exp(code: Code, x: Value) -> Value:
    """e^x, for x held to [-87.3, 88.3], so that neither end leaves the normal numbers."""
    b = code.b
    x = code.clamp(x, -87.3, 88.3)
    shifted = code.fma(x, code.number(math.log2(math.e), x), code.number(_ROUNDER, x))
    n = b.fsub(shifted, code.number(_ROUNDER, x))
    r = code.fma(n, code.number(-_LN2_HIGH, x), x)
    r = code.fma(n, code.number(-_LN2_LOW, x), r)
    p = code.number(_EXP[0], x)
    for coefficient in _EXP[1:]:
        p = code.fma(p, r, code.number(coefficient, x))
    p = code.fma(b.fmul(r, r), p, b.fadd(r, code.number(1.0, x)))
    # n stands in the low bits of shifted: n + 127 as the exponent is 2^n.
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    bits = b.bitcast(shifted, vector(lanes, I32))
    exponent = b.shl(b.add(bits, _int(127, lanes)), _int(23, lanes))
    return b.fmul(p, b.bitcast(exponent, x.type))


def _int(value: int, lanes: int) -> Value:
    return ir.Constant(vector(lanes, I32), [value] * lanes if lanes > 1 else value)


def _negative(code: Code, x: Value) -> Value:
    return code.b.fsub(code.number(-0.0, x), x)


def _tanh(code: Code, x: Value) -> Value:
    """1 - 2 / (1 + e^2x)."""
    b, one = code.b, code.number(1.0, x)
    return b.fsub(one, b.fdiv(code.number(2.0, x), b.fadd(one, exp(code, b.fadd(x, x)))))


def _erf(code: Code, x: Value) -> Value:
    b, one = code.b, code.number(1.0, x)
    size = code.intrinsic("fabs", x)
    t = b.fdiv(one, code.fma(size, code.number(_ERF_P, x), one))
    p = code.number(_ERF[0], x)
    for coefficient in _ERF[1:]:
        p = code.fma(p, t, code.number(coefficient, x))
    tail = b.fmul(b.fmul(p, t), exp(code, _negative(code, b.fmul(size, size))))
    return code.intrinsic("copysign", b.fsub(one, tail), x)
