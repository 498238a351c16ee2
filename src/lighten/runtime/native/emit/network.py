"""The network: the calls of all layers in order, for one sample.

Every address is a constant distance from one of two bases, data (activations) and constants (weights, offsets, masks),
both of which are sized here; nothing in it was read from a file unchecked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from lighten.runtime.native.emit.code import I8, I64, POINTER, VOID, Code, Kernels, Value
from lighten.runtime.native.emit.planes import copy, elements, mean
from lighten.runtime.native.emit.product import matvec, product
from lighten.runtime.native.layout import Layout, Place, Split, make_layout, reads
from lighten.runtime.native.packed import Array, Packed
from lighten.runtime.native.program import Cat, Conv, Elements, Mean, Op, Pool, Program
from lighten.runtime.native.schedule import Target, tile

LINE = 64


class Blob:
    """Arrays one after another, each on a cache line of its own; an array that is there already is not stored twice."""

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.offsets: dict[int, int] = {}
        self.size = 0

    def add(self, array: Array) -> int:
        """Where array lies, in bytes."""
        if id(array) not in self.offsets:
            self.offsets[id(array)] = self.size
            self.parts.append(array)  # kept, so that its id stays its own
            self.size += -(-array.nbytes // LINE) * LINE + LINE  # a vector may read past the end of the last
        return self.offsets[id(array)]

    def fill(self, to: Array) -> None:
        """Write all of it. to: uint8 [size]."""
        for array in self.parts:
            start = self.offsets[id(array)]
            to[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)


class Network:
    """Emits one function f(data, constants, io, sample)."""

    def __init__(
        self,
        kernels: Kernels,
        blob: Blob,
        program: Program,
        weights: Mapping[str, Packed],
        *,
        target: Target,
    ) -> None:
        self.kernels, self.blob, self.program, self.weights = kernels, blob, program, weights
        self.target = target
        self.layout: Layout = make_layout(program)
        self.masks: dict[tuple[Any, ...], Array] = {}
        self.function = ir.Function(kernels.module, ir.FunctionType(VOID, [POINTER] * 3 + [I64]), "network")
        self.function.linkage = "internal"
        self.code = Code(self.function)
        self.data, self.constants, self.io, self.sample = self.function.args
        self._emit()

    def _emit(self) -> None:
        n_inputs = len(self.program.inputs)
        for i in range(n_inputs):
            self._input(i)
        split_done = set()
        for i, op in enumerate(self.program.ops):
            split = self.layout.splits.get(i)
            if split is not None and split.to not in split_done:
                split_done.add(split.to)
                self._split(split)
            out = self.layout.places[n_inputs + i]
            self._op(op, [self.layout.places[at] for at in op.inputs], out, split)
        for i in range(len(self.program.outputs)):
            self._output(i)
        self.code.b.ret_void()

    def _op(self, op: Op, inputs: Sequence[Place], out: Place, split: Split | None) -> None:
        match op:
            case Conv():
                self._conv(op, inputs, out, split)
            case Pool():
                self._pool(op, inputs[0], out, split)
            case Mean():
                self._mean(inputs[0], out)
            case Elements():
                self._elements(op, inputs, out)
            case Cat():
                self._cat(inputs, out)
            case _:
                self._reshape(inputs[0], out)

    # Products

    def _conv(self, op: Conv, inputs: Sequence[Place], out: Place, split: Split | None) -> None:
        weight = self.weights[op.weight]
        source, at = self._window(op, inputs[0], split)
        channel, tap = np.divmod(weight.index.astype(np.int64), len(at))
        offsets = self._ints(channel * source.row_stride + at[tap])
        self._product(weight, offsets, source, out, inputs[1] if len(inputs) > 1 else None, op.act)

    def _pool(self, op: Pool, x: Place, out: Place, split: Split | None) -> None:
        """A product of each channel with itself: the mean by equal weights, the maximum without any."""
        source, at = self._window(op, x, split)
        channels = x.tensor.rows
        offsets = self._ints((np.arange(channels)[:, None] * source.row_stride + at).ravel())
        ptr = np.arange(channels + 1, dtype=np.int32) * np.int32(len(at))
        value = np.full((channels * len(at), 1), 1 / len(at), np.float32)
        weight = Packed(ptr, offsets, value, np.zeros(channels, np.float32))
        self._product(weight, offsets, source, out, None, "none", is_max=op.mode == "max")

    def _window(self, op: Conv | Pool, x: Place, split: Split | None) -> tuple[Place, Array]:
        """What op reads in place of x, and how far each weight (ky, kx) reads from its output's place: int64 [taps]."""
        source = x if split is None else self.layout.places[split.to]
        phase = x.tensor.rows * source.row_stride
        return source, np.array([slot * phase + y * source.pitch + x for slot, y, x in reads(op, split)])

    def _product(
        self,
        weight: Packed,
        offsets: Array,
        source: Place,
        out: Place,
        residual: Place | None,
        act: str,
        is_max: bool = False,
    ) -> None:
        other = residual or out
        block, n_blocks = weight.block, len(weight.ptr) - 1
        tables = [self._const(array) for array in (weight.ptr, offsets, weight.value, weight.bias)]
        pointers = [self._at(source), self._at(out), self._at(other)]
        if source.is_vector and out.is_vector and not is_max:
            kernel = matvec(self.kernels, r=block, act=act, residual=residual is not None)
            self._call(kernel, [*pointers, *tables, self._i(0), self._i(n_blocks)])
            return
        tiles = tile(out.columns, block, self.target)
        mask = self._mask(out)
        shape: dict[str, Any] = {"r": block, "lanes": self.target.lanes, "act": act, "is_max": is_max}
        shape |= {"residual": residual is not None, "masked": out.clean and not out.is_solid}
        strides = [self._i(out.row_stride), self._i(other.row_stride)]
        for v, first, count in ((tiles.v, 0, tiles.n_full), (tiles.v_last, tiles.n_full * tiles.v, 1)):
            if v and count:
                ends = [self._i(each) for each in (0, n_blocks, 0, count, first * self.target.lanes)]
                self._call(product(self.kernels, v=v, **shape), [*pointers, mask, *tables, *strides, *ends])

    # Everything else

    def _mean(self, x: Place, out: Place) -> None:
        kernel = mean(self.kernels, lanes=self.target.lanes)
        t = x.tensor
        sizes = (0, t.rows, -(-x.columns // self.target.lanes), x.row_stride, out.row_stride, t.height * t.width)
        self._call(kernel, [self._at(x), self._at(out), self._mask(x), *map(self._i, sizes)])

    def _elements(self, op: Elements, inputs: Sequence[Place], out: Place) -> None:
        a, b = inputs[0], inputs[-1]
        rows, lanes = out.tensor.rows, self.target.lanes
        is_spread = len(inputs) > 1 and b.tensor != a.tensor
        if out.is_vector:  # a single row of them
            vectors, strides = -(-rows // lanes), (0, 0, 0)
            n_rows = 1
            kernel = elements(self.kernels, lanes=lanes, op=op.op, act=op.act, spread=False, masked=False)
        else:
            vectors, strides = -(-out.columns // lanes), (a.row_stride, b.row_stride, out.row_stride)
            n_rows = rows
            masked = out.clean and not out.is_solid
            kernel = elements(self.kernels, lanes=lanes, op=op.op, act=op.act, spread=is_spread, masked=masked)
        range_ = [self._i(0), self._i(n_rows)]
        sizes = [self._i(each) for each in (vectors, *strides)]
        self._call(kernel, [self._at(a), self._at(b), self._at(out), self._mask(out), *range_, *sizes])

    def _cat(self, inputs: Sequence[Place], out: Place) -> None:
        start = 0
        for x in inputs:
            t = x.tensor
            axes = [(t.rows, x.row_stride, out.row_stride), (t.height, x.pitch, out.pitch), (t.width, 1, 1)]
            self._copy(self._at(x), self._at(out, start * out.row_stride), axes)
            start += t.rows

    def _reshape(self, x: Place, out: Place) -> None:
        t, step = x.tensor, out.row_stride
        lines = (t.height, x.pitch, t.width * step)
        self._copy(
            self._at(x), self._at(out), [(t.rows, x.row_stride, t.height * t.width * step), lines, (t.width, 1, step)]
        )

    def _split(self, split: Split) -> None:
        x, to = self.layout.places[split.source], self.layout.places[split.to]
        sy, sx = split.stride
        for slot, (a, b) in enumerate(split.phases):
            height, width = -(-(x.tensor.height - a) // sy), -(-(x.tensor.width - b) // sx)
            if height <= 0 or width <= 0:
                continue
            axes = [
                (x.tensor.rows, x.row_stride, to.row_stride),
                (height, sy * x.pitch, to.pitch),
                (width, sx, 1),
            ]
            start = self._at(to, slot * x.tensor.rows * to.row_stride)
            self._copy(self._at(x, a * x.pitch + b), start, axes)

    def _input(self, i: int) -> None:
        place = self.layout.places[i]
        self._copy(self._port(i, place), self._at(place), _port_axes(place))

    def _output(self, i: int) -> None:
        place = self.layout.places[self.program.outputs[i]]
        array = self._port(len(self.program.inputs) + i, place)
        self._copy(self._at(place), array, [(n, y, x) for n, x, y in _port_axes(place)])

    def _port(self, i: int, place: Place) -> Value:
        """The caller's array, from the group's first sample on."""
        t, b = place.tensor, self.code.b
        base = b.load(b.gep(self.io, [self._i(i)], source_etype=POINTER), typ=POINTER, align=8)
        return self.code.at(base, b.mul(self.sample, self._i(t.rows * t.height * t.width)))

    def _copy(self, x: Value, y: Value, axes: Sequence[tuple[int, int, int]]) -> None:
        """axes: size, stride of x, stride of y; at most three."""
        axes = [(1, 0, 0)] * (3 - len(axes)) + list(axes)
        kernel = copy(self.kernels, step=axes[2][1], to_step=axes[2][2])
        range_ = [self._i(0), self._i(axes[0][0])]
        sizes = [self._i(axis[0]) for axis in axes[1:]]
        strides = [self._i(axis[k]) for k in (1, 2) for axis in axes[:2]]
        self._call(kernel, [x, y, *range_, *sizes, *strides])

    # Addresses

    def _at(self, place: Place, skip: int = 0) -> Value:
        return self.code.at(self.data, self._i(place.origin + skip))

    def _const(self, array: Array) -> Value:
        return self.code.at(self.constants, self._i(self.blob.add(array)), of=I8)

    def _mask(self, place: Place) -> Value:
        length = _up(place.columns, self.target.lanes)
        key = (place.pitch, place.tensor.height, place.tensor.width)
        return self._const(self._kept(key, place.valid(length)))

    def _kept(self, key: tuple[Any, ...], array: Array) -> Array:
        return self.masks.setdefault(key, array)

    def _ints(self, values: Array) -> Array:
        assert values.size == 0 or np.abs(values).max() < 2**31
        return values.astype(np.int32)

    def _i(self, value: int) -> Value:
        return ir.Constant(I64, int(value))

    def _call(self, kernel: Value, args: Sequence[Value]) -> None:
        self.code.b.call(kernel, args)


def _port_axes(place: Place) -> list[tuple[int, int, int]]:
    """Size, stride in the caller's array and stride in the arena, for each axis of a sample."""
    t = place.tensor
    if place.is_vector:
        return [(t.rows, 1, 1)]
    return [(t.rows, t.height * t.width, place.row_stride), (t.height, t.width, place.pitch), (t.width, 1, 1)]


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
