"""Activations on scalars and vectors, NaN in, NaN out.

exp: Cephes' expf, S. Moshier, 1984–1992: 2^n · p(r), |r| <= ln 2 / 2, about 1e-7 relative. log: its logf, likewise.
erf: x · p(x²) up to 3.8, from where on it is 1 to 8e-8: 2.6e-7 absolute. A division takes as long as ten of its steps.
"""

import math

from llvmlite import ir

from lighten.runtime.native.emit.code import I32, Code, Value, vector

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
_TINY = 2.0**-126  # the smallest normal number
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUNDER = 1.5 * 2**23  # adding it leaves the nearest integer in the low bits
_ERF_LAST = 3.8
# In u = 2 (x / 3.8)² - 1, since powers of x² itself would cancel. Least squares in Chebyshev polynomials, with weights
# that make the largest error of x · p least: 5e-8.
_ERF = (
    *(1.022086449e-3, -2.695759975e-3, 2.367277744e-3, -3.299467611e-3, 9.949520666e-3, -1.833327736e-2),
    *(2.669302785e-2, -3.893965388e-2, 5.505656735e-2, -7.251550308e-2, 9.083271373e-2, -1.111855851e-1),
    *(1.377395273e-1, -1.856412154e-1, 3.721076492e-1),
)


def activate(code: Code, x: Value, act: str) -> Value:
    """act of x, one of program.ACTIVATIONS with its numbers.

    clamp: low, high. leaky_relu: slope. elu: alpha, scale and input scale, as in torch. softplus: beta, threshold.
    power: the exponent, of what is not negative; of what is, NaN.
    """
    b, one = code.b, code.number(1.0, x)
    name, *numbers = act.split(" ")
    given = [float(number) for number in numbers]
    match name:
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
        case "clamp":
            return code.clamp(x, *given)
        case "leaky_relu":
            return b.select(b.fcmp_ordered("<", x, code.number(0.0, x)), b.fmul(x, code.number(given[0], x)), x)
        case "elu":
            alpha, scale, speed = given
            below = b.fsub(exp(code, b.fmul(x, code.number(speed, x))), one)
            is_below = b.fcmp_ordered("<=", x, code.number(0.0, x))
            return b.select(is_below, b.fmul(below, code.number(alpha * scale, x)), b.fmul(x, code.number(scale, x)))
        case "softplus":
            beta, threshold = given
            times = b.fmul(x, code.number(beta, x))
            low = b.fmul(log(code, b.fadd(one, exp(code, times))), code.number(1 / beta if beta else math.inf, x))
            return b.select(b.fcmp_ordered(">", times, code.number(threshold, x)), x, low)
        case "mish":  # tanh(log(1 + e)) = (e² + 2e) / (e² + 2e + 2), and 1 from e^20 on
            e = full_exp(code, code.clamp(x, None, 20.0))
            gate = b.fmul(e, b.fadd(e, code.number(2.0, x)))
            return b.fmul(x, b.fdiv(gate, b.fadd(gate, code.number(2.0, x))))
        case "abs":
            return code.intrinsic("fabs", x)
        case "sqrt":
            return code.intrinsic("sqrt", x)
        case "rsqrt":
            return b.fdiv(one, code.intrinsic("sqrt", x))
        case "reciprocal":
            return b.fdiv(one, x)
        case "exp":
            return full_exp(code, x)
        case "expm1":
            return b.fsub(full_exp(code, x), one)
        case "log":
            return log(code, x)
        case "log1p":
            return log(code, b.fadd(one, x))
        case "erf":
            return _erf(code, x)
        case "power":
            return full_exp(code, b.fmul(log(code, x), code.number(given[0], x)))
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


def full_exp(code: Code, x: Value) -> Value:
    """e^x, 0 below the normal numbers and infinity above them."""
    b = code.b
    high = b.select(b.fcmp_ordered(">", x, code.number(88.3, x)), code.number(math.inf, x), exp(code, x))
    return b.select(b.fcmp_ordered("<", x, code.number(-87.3, x)), code.number(0.0, x), high)


def log(code: Code, x: Value) -> Value:
    """The natural logarithm: NaN below 0, and -infinity at 0, which denormals are."""
    b, one, zero = code.b, code.number(1.0, x), code.number(0.0, x)
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    # x = m · 2^n, m from sqrt(1/2) on: what lies between its bits and those of sqrt(1/2) is n, and m - sqrt(1/2).
    bits = b.sub(b.bitcast(x, vector(lanes, I32)), _int(_SQRT_HALF, lanes))
    n = b.sitofp(b.ashr(bits, _int(23, lanes)), x.type)
    m = b.bitcast(b.add(b.and_(bits, _int(0x7FFFFF, lanes)), _int(_SQRT_HALF, lanes)), x.type)
    r = b.fsub(m, one)
    p = code.number(_LOG[0], x)
    for coefficient in _LOG[1:]:
        p = code.fma(p, r, code.number(coefficient, x))
    square = b.fmul(r, r)
    low = code.fma(n, code.number(_LN2_LOW, x), b.fmul(b.fmul(p, r), square))
    low = code.fma(square, code.number(-0.5, x), low)
    value = code.fma(n, code.number(_LN2_HIGH, x), b.fadd(r, low))
    value = b.select(b.fcmp_ordered("<", x, code.number(math.inf, x)), value, x)  # infinity and NaN stay
    value = b.select(b.fcmp_ordered("<", x, zero), code.number(math.nan, x), value)
    return b.select(
        b.fcmp_ordered("<", code.intrinsic("fabs", x), code.number(_TINY, x)), code.number(-math.inf, x), value
    )


def _int(value: int, lanes: int) -> Value:
    return ir.Constant(vector(lanes, I32), [value] * lanes if lanes > 1 else value)


def _negative(code: Code, x: Value) -> Value:
    return code.b.fsub(code.number(-0.0, x), x)


def _tanh(code: Code, x: Value) -> Value:
    """1 - 2 / (1 + e^2x)."""
    b, one = code.b, code.number(1.0, x)
    return b.fsub(one, b.fdiv(code.number(2.0, x), b.fadd(one, exp(code, b.fadd(x, x)))))


def _erf(code: Code, x: Value) -> Value:
    b = code.b
    x = code.clamp(x, -_ERF_LAST, _ERF_LAST)
    u = code.fma(b.fmul(x, code.number(2 / _ERF_LAST**2, x)), x, code.number(-1.0, x))
    p = code.number(_ERF[0], x)
    for coefficient in _ERF[1:]:
        p = code.fma(p, u, code.number(coefficient, x))
    return b.fmul(x, p)
