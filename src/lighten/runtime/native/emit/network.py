"""The network: the calls of all layers in order, for one sample."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir

from lighten.runtime.native.depthwise import find_chains, find_depthwise
from lighten.runtime.native.emit.blob import Blob
from lighten.runtime.native.emit.code import F32, I64, POINTER, Kernels, Value, cycles
from lighten.runtime.native.emit.columns import norm, reduce_rows, softmax
from lighten.runtime.native.emit.matmul import matmul
from lighten.runtime.native.emit.matvec import matvec
from lighten.runtime.native.emit.planes import copy, elements, embedding, gather, reduce_places
from lighten.runtime.native.emit.product import product
from lighten.runtime.native.emit.stages import Stages
from lighten.runtime.native.emit.windows import Window, lines_of, windows
from lighten.runtime.native.layout import ALIGN, Layout, Place, Split, make_layout, reads
from lighten.runtime.native.packed import Array, Packed
from lighten.runtime.native.program import (
    Cat,
    Constant,
    Conv,
    Elements,
    Embedding,
    Gather,
    Matmul,
    Norm,
    Op,
    Pool,
    Program,
    Reduce,
    Reshape,
    Softmax,
)
from lighten.runtime.native.schedule import Lanes, Target
from lighten.runtime.native.stored import Stored

NARROW = 2  # vectors of places to a thread, of which there have to be so many for places to be shared, and not outputs
HEIGHT = 4  # rows to a block of a product of activations
EXP = 24  # operations in the time of a vector's exponential, and the rest of a softmax
STORING = 4  # operations in the time that storing a vector takes, with all around it
Axes = Sequence[tuple[int, int, int]]  # size, stride of what is read and stride of what is written


class Network(Stages):
    """The stages that make a sample's outputs. are_samples: whether places are samples, in what the caller gives.

    is_profiled: whether they keep, behind the activations, when each part began and was done with each operation, and
    at last with the outputs: cycles, int64 [operations + 2, threads].
    """

    def __init__(
        self,
        kernels: Kernels,
        blob: Blob,
        program: Program,
        stored: Stored,
        *,
        target: Target,
        threads: int,
        are_samples: bool = False,
        is_profiled: bool = False,
    ) -> None:
        super().__init__(kernels, blob, target, threads)
        self.is_profiled = is_profiled
        self.program, self.stored, self.are_samples = program, stored, are_samples
        self.depthwise = find_depthwise(program, stored)
        self.chains = find_chains(program, stored, self.depthwise)
        in_cache = {i: rows * threads for i, rows in self.chains.items()}
        self.layout: Layout = make_layout(program, self.depthwise, in_cache)
        self._emit()

    def _emit(self) -> None:
        n_inputs = len(self.program.inputs)
        self._tick(0)
        for i in range(n_inputs):
            self._input(i)
        split_done = set()
        for i, op in enumerate(self.program.ops):
            split = self.layout.splits.get(i)
            if split is not None and split.to not in split_done:
                split_done.add(split.to)
                self._split(split)
            out = self.layout.places[n_inputs + i]
            inputs = [self.layout.places[at] for at in op.inputs]
            if i in self.chains:
                self._chain(i)
            elif i not in self.depthwise:
                self._op(op, inputs, out, split)
            elif i - 1 not in self.chains:
                assert isinstance(op, Conv)
                self._windows(op, inputs, out, self.depthwise[i])
            self._tick(i + 1)
        for i in range(len(self.program.outputs)):
            self._output(i)
        self._tick(len(self.program.ops) + 1)
        self.code.b.ret_void()

    def _tick(self, i: int) -> None:
        """Keep when this part was done with all up to here."""
        if self.is_profiled:
            slot = self.code.b.add(self.first, self._i(self.layout.size // 2 + i * self.n_threads))
            self.code.store(cycles(self.code), self.code.at(self.data, slot, of=I64))

    @property
    def written(self) -> list[tuple[Array, Array]]:
        """What has to stand in an arena before a call: addresses and values, both [rows, places]."""
        places = zip(self.program.ops, self.layout.places[len(self.program.inputs) :], strict=False)
        return [(place.addresses, self.stored.arrays[op.array]) for op, place in places if isinstance(op, Constant)]

    def _op(self, op: Op, inputs: Sequence[Place], out: Place, split: Split | None) -> None:
        match op:
            case Conv():
                self._conv(op, inputs, out, split)
            case Pool():
                x = inputs[0] if split is None else self.layout.places[split.to]
                self._windows(op, [x], out, None)
            case Reduce():
                (self._reduce_rows if op.groups else self._reduce_places)(op, inputs[0], out)
            case Elements():
                self._elements(op, inputs, out)
            case Cat():
                self._cat(inputs, out)
            case Reshape():
                self._reshape(inputs[0], out)
            case Constant():  # in the arena since before the call
                pass
            case Gather():
                self._gather(self.stored.arrays[op.array], inputs, out)
            case Embedding():
                self._embedding(op, inputs[0], out)
            case Norm():
                self._norm(op, inputs, out)
            case Softmax():
                self._softmax(op, inputs[0], out)
            case Matmul():
                self._matmul(op, inputs, out)

    # Products

    def _conv(self, op: Conv, inputs: Sequence[Place], out: Place, split: Split | None) -> None:
        source, offsets = self._reading(op, inputs[0], split)
        weight, residual = self.stored.weights[op.weight], inputs[1] if len(inputs) > 1 else None
        if source.is_vector and out.is_vector:
            self._matvec(weight, offsets, source, out, residual, op.act)
        else:  # each weight serves many vectors: there is no memory to wait for
            far = [] if reads(op, split) == [(0, 0, 0)] else [source]
            self._product(weight.floats, offsets, source, out, residual, op.act, far)

    def _reading(self, op: Conv, x: Place, split: Split | None) -> tuple[Place, Array]:
        """What op reads in place of x, and how far from its output's place each stored weight does."""
        source, index = x if split is None else self.layout.places[split.to], self.stored.weights[op.weight].index
        phase = x.tensor.rows * source.row_stride
        at = np.array([slot * phase + y * source.pitch + x for slot, y, x in reads(op, split)])
        channel, tap = np.divmod(index.astype(np.int64), len(at))
        return source, self._ints(channel * source.row_stride + at[tap])

    def _product(
        self,
        weight: Packed,
        offsets: Array,
        source: Place,
        out: Place,
        residual: Place | None,
        act: str,
        far: Sequence[Place],
    ) -> None:
        """far: see _begin."""
        vectors, n_blocks = -(-out.columns // self.target.lanes), len(weight.ptr) - 1
        work, inputs = self._work(weight, out), [source, residual] if residual else [source]
        if vectors < NARROW * self.n_threads:
            (cuts,) = self._begin(inputs, out, work)
            blocks, tiles = self._range(cuts), None
        else:
            (tiles,) = self._begin(inputs, out, np.full(vectors, work.sum() / vectors), far=far)
            blocks = [self._i(0), self._i(n_blocks)]
        self._blocks(weight, offsets, source, out, self._at(out), residual, act, blocks, tiles)

    def _work(self, weight: Packed, out: Place) -> Array:
        """Of each block."""
        return weight.block * (np.diff(weight.ptr) + STORING) * -(-out.columns // self.target.lanes)

    def _blocks(
        self,
        weight: Packed,
        offsets: Array,
        source: Place,
        out: Place,
        to: Value,
        residual: Place | None,
        act: str,
        blocks: list[Value],
        cuts: Sequence[int] | None,
    ) -> None:
        """Some blocks of a product. to: where row 0 of out would be. cuts: of the vectors; None = all are done."""
        shape: dict[str, Any] = {"r": weight.block, "act": act}
        shape |= {"residual": residual is not None, "masked": self._is_masked(out)}
        other = out if residual is None else residual
        cuts_or_all = cuts or [0, -(-out.columns // self.target.lanes)]
        for lanes, columns, counts in self._tiles(out, cuts_or_all, weight.block, self.target):
            ends = self._range(counts) if cuts else [self._i(0), self._i(counts[-1])]
            pointers = [self._at(source), to, self._at(other), self._mask(out), columns]
            sizes = [self._i(out.row_stride), self._i(other.row_stride), *blocks, *ends]
            self._call(product(self.kernels, lanes=lanes, **shape), [*pointers, *self._tables(weight, offsets), *sizes])

    def _windows(self, op: Conv | Pool, inputs: Sequence[Place], out: Place, weight: Packed | None) -> None:
        """weight: None = of a pool."""
        x, residual = inputs[0], inputs[1] if len(inputs) > 1 else None
        n_blocks, work = self._window_work(op, out)
        (cuts,) = self._begin(inputs, out, np.full(out.tensor.rows * n_blocks, work))
        self._lines(op, self._at(x, _before(op, x)), x, out, residual, weight, self._range(cuts))

    def _window_work(self, op: Conv | Pool, out: Place) -> tuple[int, int]:
        """How many blocks of lines a row has, and the work of each."""
        lines, _, n_blocks, n_vectors = self._window_shape(op, out)
        return n_blocks, lines * n_vectors * (_window_of(op).size + STORING)

    def _window_shape(self, op: Conv | Pool, out: Place) -> tuple[int, int, int, int]:
        """Lines of a block and lanes of a vector, which fit into out; how many blocks and vectors there are."""
        t = out.tensor
        n_blocks, lines = lines_of(_window_of(op), t.height, self.target.registers)
        lanes = min(self.target.lanes, 2 ** (t.width.bit_length() - 1))
        # One vector of twice as many lanes reaches into the next line, which is written after it, and at last into
        # what is left of the row. In another block that line may have been written before, by another thread.
        is_wide = lanes < t.width < 2 * lanes <= self.target.lanes
        room = -(-t.height * out.pitch // ALIGN) * ALIGN - (t.height - 1) * out.pitch
        if is_wide and n_blocks == 1 and not out.clean and 2 * lanes <= room:
            lanes *= 2
        return lines, lanes, n_blocks, -(-t.width // lanes)

    def _lines(
        self,
        op: Conv | Pool,
        start: Value,
        x: Place,
        out: Place,
        residual: Place | None,
        weight: Packed | None,
        ends: list[Value],
    ) -> None:
        """Some blocks of lines of windows. start: the first place of row 0's first."""
        (lines, lanes, n_blocks, n_vectors), t = self._window_shape(op, out), out.tensor
        act = op.act if isinstance(op, Conv) else "none"
        kernel = windows(self.kernels, _window_of(op), lines=lines, lanes=lanes, act=act, residual=residual is not None)
        other = out if residual is None else residual
        tables = [start] * 2 if weight is None else [self._const(weight.value), self._const(weight.bias)]
        last = (n_blocks, t.height - lines, n_vectors, max(0, t.width - lanes))
        sizes = [size for place in (x, out, other) for size in (place.row_stride, place.pitch)]
        pointers = [start, self._at(out), self._at(other), *tables]
        self._call(kernel, [*pointers, *ends, *map(self._i, (*last, *sizes))])

    def _chain(self, i: int) -> None:
        """Op i some rows at a time, each time followed by what the next op makes of them; see depthwise.py."""
        op, after = self.program.ops[i], self.program.ops[i + 1]
        assert isinstance(op, Conv)
        assert isinstance(after, Conv)
        places, rows, at = self.layout.places, self.chains[i], len(self.program.inputs) + i
        middle, out = places[at], places[at + 1]
        source, offsets = self._reading(op, places[op.inputs[0]], self.layout.splits.get(i))
        weight = self.stored.weights[op.weight].floats
        n_lines, work_of_lines = self._window_work(after, out)
        each = rows // weight.block
        work = np.add.reduceat(self._work(weight, middle), np.arange(0, len(weight.ptr) - 1, each))
        (cuts,) = self._begin([source], out, work + rows * n_lines * work_of_lines, over=middle)
        b, c = self.code.b, self.code.const
        own = c(0) if self.n_threads == 1 else b.mul(self.first, c(rows))  # the first row of middle that is this part's

        def group(g: Value, _: list[Value]) -> list[Value]:
            start = b.mul(g, c(rows))
            moved = b.mul(b.sub(own, start), c(middle.row_stride))
            blocks = [b.mul(g, c(each)), self.code.least(b.mul(b.add(g, c(1)), c(each)), c(len(weight.ptr) - 1))]
            to = self.code.at(self._at(middle), moved)
            self._blocks(weight, offsets, source, middle, to, None, op.act, blocks, None)
            items = [b.mul(start, c(n_lines)), b.mul(self.code.least(b.add(start, c(rows)), c(after.rows)), c(n_lines))]
            window_start = self.code.at(self._at(middle, _before(after, middle)), moved)
            self._lines(after, window_start, middle, out, None, self.depthwise[i + 1], items)
            return []

        first_group, last_group = self._range(cuts)
        self.code.loop(first_group, last_group, group)

    def _matvec(
        self, weight: Packed, offsets: Array, source: Place, out: Place, residual: Place | None, act: str
    ) -> None:
        other, is_added = residual or out, residual is not None
        work = weight.block / self.target.lanes * np.diff(weight.ptr) + STORING
        (cuts,) = self._begin([source, other] if is_added else [source], out, work)
        narrow = offsets.astype(np.uint16)  # columns, of which there rarely are more
        offsets = narrow if np.array_equal(narrow, offsets) else offsets
        types = {"stored": weight.value.dtype.name, "offsets": offsets.dtype.name}
        kernel = matvec(self.kernels, r=weight.block, act=act, residual=is_added, **types)
        pointers = [self._at(place) for place in (source, out, other)]
        scale = self._const(weight.bias if weight.scale is None else weight.scale)
        self._call(kernel, [*pointers, *self._tables(weight, offsets), scale, *self._range(cuts)])

    def _tables(self, weight: Packed, offsets: Array) -> list[Value]:
        return [self._const(array) for array in (weight.ptr, offsets, weight.value, weight.bias)]

    # Attention, and what goes along the rows of each place

    def _matmul(self, op: Matmul, inputs: Sequence[Place], out: Place) -> None:
        """Blocks of 4 rows, and what is left of a group row by row."""
        (x, w), target = inputs, self._target_for(out)
        vectors, full = -(-out.columns // target.lanes), op.size // HEIGHT
        rests = op.size - full * HEIGHT
        each = op.depth + STORING
        if by_columns := vectors >= NARROW * self.n_threads:
            (tiles,) = self._begin([x, w], out, np.full(vectors, op.groups * op.size * each), far=[w])
            cuts = [[0, op.groups * full], [0, op.groups * rests]]
        else:
            work = np.full(op.groups, vectors * each)
            cuts = self._begin([x, w], out, np.repeat(work * HEIGHT, full), np.repeat(work, rests))
            tiles = [0, vectors]
        w_row, w_step = (w.row_stride, 1) if op.across else (1, w.row_stride)
        w_group = (op.size if op.across else op.depth) * w.row_stride
        y_group, x_group = op.size * out.row_stride, op.depth * x.row_stride
        starts = [op.starts[0] * x.row_stride, op.starts[1] * w.row_stride]
        for r, blocks, done, items in ((HEIGHT, full, 0, cuts[0]), (1, rests, full * HEIGHT, cuts[1])):
            if not blocks:
                continue
            scale = ir.Constant(F32, op.scale)
            rows = [self._i(0), self._i(items[-1])] if by_columns else self._range(items)
            sizes = (op.depth, blocks, x.row_stride, x_group, w_row, w_step, w_group, out.row_stride, y_group)
            bases = [
                self._at(x, starts[0]),
                self._at(w, starts[1] + done * w_row),
                self._at(out, done * out.row_stride),
            ]
            for lanes, columns, counts in self._tiles(out, tiles, r, target):
                kernel = matmul(self.kernels, r=r, lanes=lanes, masked=self._is_masked(out))
                ends = [*rows, *(self._range(counts) if by_columns else [self._i(0), self._i(counts[-1])])]
                self._call(kernel, [*bases, self._mask(out), columns, scale, *map(self._i, sizes), *ends])

    def _softmax(self, op: Softmax, x: Place, out: Place) -> None:
        sizes = (op.groups, out.tensor.rows // op.groups, x.row_stride, out.row_stride)
        for lanes, columns, ends in self._by_columns([x], out, EXP):
            kernel = softmax(self.kernels, lanes=lanes, masked=self._is_masked(out))
            self._call(kernel, [self._at(x), self._at(out), self._mask(out), columns, *map(self._i, sizes), *ends])

    def _norm(self, op: Norm, inputs: Sequence[Place], out: Place) -> None:
        x, scale, shift = inputs
        sizes = (out.tensor.rows, x.row_stride, out.row_stride, scale.row_stride, shift.row_stride)
        for lanes, columns, ends in self._by_columns(inputs, out, STORING):
            kernel = norm(self.kernels, lanes=lanes, masked=self._is_masked(out), centered=op.centered)
            pointers = [self._at(place) for place in (x, out, scale, shift)]
            eps = ir.Constant(F32, op.eps)
            self._call(kernel, [*pointers, self._mask(out), columns, eps, *map(self._i, sizes), *ends])

    def _reduce_rows(self, op: Reduce, x: Place, out: Place) -> None:
        rows = x.tensor.rows // op.groups
        sizes = (op.groups, rows, x.row_stride, out.row_stride)
        for lanes, columns, ends in self._by_columns([x], out, rows):
            kernel = reduce_rows(self.kernels, how=op.how, lanes=lanes, masked=self._is_masked(out))
            self._call(kernel, [self._at(x), self._at(out), self._mask(out), columns, *map(self._i, sizes), *ends])

    def _by_columns(self, inputs: Sequence[Place], out: Place, cost: int) -> Iterator[tuple[Lanes, Value, list[Value]]]:
        """For each kind of tiles: their first columns, and which of them a part has. cost: of a number's vector."""
        target = self._target_for(out)
        vectors = -(-out.columns // target.lanes)
        (cuts,) = self._begin(inputs, out, np.full(vectors, cost * out.tensor.rows), far=inputs[1:])
        for lanes, columns, counts in self._tiles(out, cuts, 1, target):
            yield lanes, columns, self._range(counts)

    def _target_for(self, out: Place) -> Target:
        """One lane for a vector: what lies beside its place is the next row."""
        return replace(self.target, lanes=1) if out.is_vector else self.target

    # Everything else

    def _reduce_places(self, op: Reduce, x: Place, out: Place) -> None:
        kernel = reduce_places(self.kernels, how=op.how, lanes=self.target.lanes)
        t, vectors = x.tensor, -(-x.columns // self.target.lanes)
        (cuts,) = self._begin([x], out, np.full(t.rows, vectors + STORING))
        sizes = (vectors, x.row_stride, out.row_stride, t.height * t.width)
        self._call(kernel, [self._at(x), self._at(out), self._mask(x), *self._range(cuts), *map(self._i, sizes)])

    def _elements(self, op: Elements, inputs: Sequence[Place], out: Place) -> None:
        t, lanes = out.tensor, self.target.lanes
        if out.is_vector:  # a single row of them
            n_rows, vectors, strides = 1, -(-t.rows // lanes), [0] * (len(inputs) + 1)
            spread = tuple(x.tensor != t for x in inputs)
        else:
            n_rows, vectors = t.rows, -(-out.columns // lanes)
            strides = [x.row_stride if x.tensor.rows == t.rows else 0 for x in (*inputs, out)]
            spread = tuple((x.tensor.height, x.tensor.width) != (t.height, t.width) for x in inputs)
        masked = self._is_masked(out)
        kernel = elements(self.kernels, lanes=lanes, op=op.op, act=op.act, spread=spread, masked=masked)
        (cuts,) = self._begin(inputs, out, np.full(n_rows, STORING * vectors))
        pointers = [self._at(place) for place in (*inputs, out)]
        sizes = [self._i(each) for each in (vectors, *strides)]
        self._call(kernel, [*pointers, self._mask(out), *self._range(cuts), *sizes])

    def _cat(self, inputs: Sequence[Place], out: Place) -> None:
        starts = np.cumsum([0, *(x.tensor.rows for x in inputs)])
        axes = [
            [(t.rows, x.row_stride, out.row_stride), (t.height, x.pitch, out.pitch), (t.width, 1, 1)]
            for x in inputs
            for t in [x.tensor]
        ]
        cuts = self._begin(inputs, out, *(_copying(each) for each in axes))
        for x, start, each, cuts_of_each in zip(inputs, starts[:-1], axes, cuts, strict=True):
            self._copy(self._at(x), self._at(out, start * out.row_stride), each, cuts_of_each)

    def _reshape(self, x: Place, out: Place) -> None:
        t, step = x.tensor, out.row_stride
        lines = (t.height, x.pitch, t.width * step)
        axes = [(t.rows, x.row_stride, t.height * t.width * step), lines, (t.width, 1, step)]
        (cuts,) = self._begin([x], out, _copying(axes))
        self._copy(self._at(x), self._at(out), axes, cuts)

    def _gather(self, index: Array, inputs: Sequence[Place], out: Place) -> None:
        t = out.tensor
        rows, lines, width = (1, 1, t.rows) if out.is_vector else (t.rows, t.height, t.width)
        (cuts,) = self._begin(inputs, out, np.full(rows, lines * (width + STORING)))
        addresses = np.concatenate([x.addresses.ravel() for x in inputs])
        table = self._const(self._ints(addresses[index.ravel()]))
        sizes = (lines, width, out.row_stride, out.pitch)
        self._call(gather(self.kernels), [self.data, self._at(out), table, *self._range(cuts), *map(self._i, sizes)])

    def _embedding(self, op: Embedding, x: Place, out: Place) -> None:
        n_tokens = x.tensor.rows
        (cuts,) = self._begin([x], out, np.full(n_tokens, op.rows + STORING))
        table = self._const(self.stored.arrays[op.table])
        sizes = (op.entries, op.rows, x.row_stride, out.row_stride)
        args = [self._at(x), table, self._at(out), *self._range(cuts), *map(self._i, sizes)]
        self._call(embedding(self.kernels), args)

    def _split(self, split: Split) -> None:
        x, to = self.layout.places[split.source], self.layout.places[split.to]
        sy, sx = split.stride
        sizes = [(-(-(x.tensor.height - a) // sy), -(-(x.tensor.width - b) // sx)) for a, b in split.phases]
        axes = [
            [(x.tensor.rows, x.row_stride, to.row_stride), (height, sy * x.pitch, to.pitch), (width, sx, 1)]
            for height, width in sizes
        ]
        cuts = self._begin([x], to, *(_copying(each) for each in axes))
        for slot, ((a, b), (height, width)) in enumerate(zip(split.phases, sizes, strict=True)):
            if height > 0 and width > 0:
                start = self._at(to, slot * x.tensor.rows * to.row_stride)
                self._copy(self._at(x, a * x.pitch + b), start, axes[slot], cuts[slot])

    def _input(self, i: int) -> None:
        place = self.layout.places[i]
        axes = _port_axes(place, self.are_samples)
        (cuts,) = self._begin([], place, _copying(axes))
        self._copy(self._port(i, place), self._at(place), axes, cuts)

    def _output(self, i: int) -> None:
        place = self.layout.places[self.program.outputs[i]]
        axes = [(n, y, x) for n, x, y in _port_axes(place, self.are_samples)]
        (cuts,) = self._begin([place], None, _copying(axes))
        self._copy(self._at(place), self._port(len(self.program.inputs) + i, place), axes, cuts)

    def _port(self, i: int, place: Place) -> Value:
        """The caller's array, from this sample on."""
        t, b = place.tensor, self.code.b
        base = b.load(b.gep(self.io, [self._i(i)], source_etype=POINTER), typ=POINTER, align=8)
        return self.code.at(base, b.mul(self.sample, self._i(t.rows * t.height * t.width)))

    def _copy(self, x: Value, y: Value, axes: Axes, cuts: Sequence[int]) -> None:
        """Three axes; cuts: of the first."""
        kernel = copy(self.kernels, step=axes[2][1], to_step=axes[2][2])
        sizes = [self._i(axis[0]) for axis in axes[1:]]
        strides = [self._i(axis[k]) for k in (1, 2) for axis in axes[:2]]
        self._call(kernel, [x, y, *self._range(cuts), *sizes, *strides])


def _window_of(op: Conv | Pool) -> Window:
    (ky, kx), (sy, sx), (dy, dx) = op.kernel, op.stride, op.dilation
    return Window((ky, kx), (sy, sx), (dy, dx), op.mode if isinstance(op, Pool) else "sum")


def _before(op: Conv | Pool, x: Place) -> int:
    """How far op's first window starts from x's first place."""
    return -op.padding[0] * x.pitch - op.padding[1]


def _copying(axes: Axes) -> Array:
    """The work of a copy, for each index of its first axis."""
    (n, *_), (lines, *_), (width, *steps) = axes
    line = width / 4 if steps == [1, 1] else width  # short lines leave little of a vector's width
    return np.full(n, max(0, lines) * (max(0, line) + STORING))


def _port_axes(place: Place, are_samples: bool) -> Axes:
    """From the caller's array into the arena, for each axis of a sample, or of places that are samples."""
    t = place.tensor
    if are_samples:
        return [(t.rows, 1, place.row_stride), (1, 0, 0), (t.width, t.rows, 1)]
    if place.is_vector:
        return [(1, 0, 0), (1, 0, 0), (t.rows, 1, 1)]
    return [(t.rows, t.height * t.width, place.row_stride), (t.height, t.width, place.pitch), (t.width, 1, 1)]
