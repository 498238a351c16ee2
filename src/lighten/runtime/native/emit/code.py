"""A thin layer over llvmlite's builder: loops with carried values, vectors, float arithmetic that keeps NaN.

Kernels are functions of the module, made once for each key (tile shape, activation, …) and called by every layer that
needs them, so that a deep network compiles as fast as its few kinds of layers.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

Value = Any  # llvmlite's own annotations say no more
F32, I1, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
POINTER, VOID = ir.PointerType(), ir.VoidType()


class Code:
    """The body of one function under construction."""

    def __init__(self, function: Value) -> None:
        self.function = function
        self.module = function.module
        self.b = ir.IRBuilder(function.append_basic_block("entry"))

    def const(self, value: int) -> Value:
        """An int64."""
        return ir.Constant(I64, value)

    def loop(
        self,
        low: Value,
        high: Value,
        body: Callable[[Value, list[Value]], Sequence[Value]],
        carry: Sequence[Value] = (),
    ) -> list[Value]:
        """for i in range(low, high): carry = body(i, carry). Returns what is carried out."""
        before = self.b.block
        head, inside, after = (self.function.append_basic_block(name) for name in ("loop", "body", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        i = self.b.phi(I64)
        phis = [self.b.phi(value.type) for value in carry]
        for phi, value in zip((i, *phis), (low, *carry), strict=True):
            phi.add_incoming(value, before)
        self.b.cbranch(self.b.icmp_signed("<", i, high), inside, after)
        self.b.position_at_end(inside)
        out = body(i, phis)
        step = self.b.add(i, self.const(1))
        for phi, value in zip((i, *phis), (step, *out), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)
        return phis

    def at(self, pointer: Value, *terms: Value, of: Value = F32) -> Value:
        """The address of element sum(terms) of pointer."""
        for term in terms:
            pointer = self.b.gep(pointer, [term], source_etype=of)
        return pointer

    def load(self, pointer: Value, kind: Value = F32) -> Value:
        """A value, aligned as its element is."""
        return self.b.load(pointer, typ=kind, align=_align(kind))

    def store(self, value: Value, pointer: Value) -> None:
        """The inverse of load."""
        self.b.store(value, pointer, align=_align(value.type))

    def index(self, table: Value, *terms: Value, of: Value = I32) -> Value:
        """Element sum(terms) of a table of int32, or of uint16, as int64."""
        loaded = self.load(self.at(table, *terms, of=of), of)
        return self.b.sext(loaded, I64) if of is I32 else self.b.zext(loaded, I64)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector with scalar in each lane; the scalar itself where there is one lane."""
        if lanes == 1:
            return scalar
        kind = ir.VectorType(scalar.type, lanes)
        single = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.b.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)

    def number(self, value: float, like: Value) -> Value:
        """A float32 constant of the shape of the value `like`."""
        if isinstance(like.type, ir.VectorType):
            return ir.Constant(like.type, [value] * like.type.count)
        return ir.Constant(F32, value)

    def intrinsic(self, name: str, *args: Value) -> Value:
        """A float intrinsic of LLVM such as fma, on scalars or vectors."""
        kind = args[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        full = f"llvm.{name}.{suffix}"
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(kind, [kind] * len(args)), full)
        return self.b.call(function, args)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a · b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def least(self, a: Value, b: Value) -> Value:
        """Of two integers."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def clamp(self, x: Value, low: float | None, high: float | None) -> Value:
        """x between low and high; NaN stays NaN, which is why comparisons ask for what would change x."""
        for limit, outside in ((low, "<"), (high, ">")):
            if limit is not None:
                value = self.number(limit, x)
                x = self.b.select(self.b.fcmp_ordered(outside, x, value), value, x)
        return x


class Kernels:
    """The functions of a module, each made once."""

    def __init__(self, module: Value) -> None:
        self.module = module
        self.made: dict[tuple[Any, ...], Value] = {}

    def get(self, key: tuple[Any, ...], args: Sequence[Value], emit: Callable[[Code, Sequence[Value]], None]) -> Value:
        """The function of that key; emit(code, arguments) writes its body where it is new."""
        if key not in self.made:
            name = "_".join(str(part).replace("-", "m") for part in key)
            function = ir.Function(self.module, ir.FunctionType(VOID, args), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            self.made[key] = function
            code = Code(function)
            emit(code, function.args)
            code.b.ret_void()
        return self.made[key]


def vector(lanes: int, of: Value = F32) -> Value:
    """The type of that many lanes; the element's own where there is one."""
    return of if lanes == 1 else ir.VectorType(of, lanes)


def declared(code: Code, name: str, returns: Value, *args: Value) -> Value:
    """The function of that name and type, which is defined elsewhere."""
    found = code.module.globals.get(name)
    return found or ir.Function(code.module, ir.FunctionType(returns, args), name)


def cycles(code: Code) -> Value:
    """A count that grows steadily, the same for all cores: int64."""
    name = "cycle" if "86" in platform.machine() else "steady"  # other CPUs count cycles for the kernel alone
    return code.b.call(declared(code, f"llvm.read{name}counter", I64), [])


def _align(kind: Value) -> int:
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return (
        8
        if element is POINTER or isinstance(element, ir.PointerType)
        else {1: 1, 8: 1, 16: 2, 32: 4, 64: 8}[getattr(element, "width", 32)]
    )
