"""Unread: places that nobody reads are not computed.

A transformer that classifies by its first token reads one place of what its last block makes; keys and values need all
places, but the query, what attention gives, and all layers after it need that one alone. What is read is found from the
end on: a gather reads the places that it names, an operation that goes place by place needs those that are needed of
what it makes, and any other needs all. An operation of which at most half of the places are needed makes only these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lighten.export.native.products import best_block
from lighten.runtime.native.packed import Array
from lighten.runtime.native.program import Cat, Constant, Conv, Elements, Gather, Matmul, Norm, Op, Program, Softmax
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored


def without_unread(program: Program, stored: Stored) -> tuple[Program, Stored]:
    """The same outputs, up to rounding, of a program that leaves out what they do not need."""
    return _Narrowed(program, stored, places_made(program, stored)).made()


def places_made(program: Program, stored: Stored) -> list[Array]:
    """The places of each tensor that have to be made, ascending: all, at most half of them, or none."""
    tensors = program.tensors
    needed = [np.zeros(_places(t), bool) for t in tensors]
    for at in program.outputs:
        needed[at][:] = True
    for i in reversed(range(len(program.ops))):
        op, wanted = program.ops[i], needed[len(program.inputs) + i]
        by_place = _by_place(op, tensors)
        can_be_narrow = bool(by_place) or isinstance(op, (Constant, Gather))
        if wanted.any() and not (can_be_narrow and 2 * wanted.sum() <= len(wanted)):
            wanted[:] = True
        for k, at in enumerate(op.inputs):
            if isinstance(op, Gather):
                needed[at][_places_read(stored.arrays[op.array][:, wanted], [tensors[j] for j in op.inputs], k)] = True
            elif k in by_place:
                needed[at] |= wanted
            else:
                needed[at] |= wanted.any()
    return [np.flatnonzero(each) for each in needed]


def _by_place(op: Op, tensors: Sequence[Sizes]) -> list[int]:
    """Which of op's inputs it reads at the place that it makes, and nowhere else."""
    match op:
        case Conv():
            return [*range(len(op.inputs))] if op.is_pointwise else []
        case Elements():
            most = max(_places(tensors[at]) for at in op.inputs)
            return [k for k, at in enumerate(op.inputs) if _places(tensors[at]) == most]
        case Cat():
            return [*range(len(op.inputs))]
        case Norm() | Softmax() | Matmul():
            return [0]
        case _:
            return []


def _places_read(index: Array, inputs: Sequence[Sizes], k: int) -> Array:
    """The places of input k that a gather reads. index: as Gather has it."""
    start = sum(_places(t) * t.rows for t in inputs[:k])
    own = index[(index >= start) & (index < start + inputs[k].rows * _places(inputs[k]))] - start
    return np.unique(own % _places(inputs[k]))


def _places(sizes: Sizes) -> int:
    return sizes.height * sizes.width


class _Narrowed:
    """The new program, op by op. kept: the places that each old tensor has in it. new: which of its tensors it is."""

    def __init__(self, program: Program, stored: Stored, kept: Sequence[Array]) -> None:
        self.program, self.tensors = program, program.tensors
        whole = [np.arange(_places(t)) for t in program.inputs]
        self.kept = [*whole, *kept[len(whole) :]]
        self.stored = Stored(dict(stored.weights), dict(stored.arrays))
        self.ops: list[Op] = []
        self.new: list[int] = [*range(len(whole))]
        self.gathered: dict[tuple[int, bytes], int] = {}

    def made(self) -> tuple[Program, Stored]:
        for i, op in enumerate(self.program.ops):
            places = self.kept[len(self.program.inputs) + i]
            self.new.append(self._one(op, places) if len(places) else -1)
        outputs = tuple(self.new[at] for at in self.program.outputs)
        return Program(self.program.inputs, tuple(self.ops), outputs), self.stored

    def _one(self, op: Op, places: Array) -> int:
        """The new tensor that op makes, with these places."""
        is_narrow = len(places) < _places(self.tensors[len(self.new)])
        match op:
            case Gather():
                index = self._index(op)
                narrow = replace(op, inputs=tuple(self.new[at] for at in op.inputs if len(self.kept[at])))
                if is_narrow:
                    index, narrow = index[:, places], replace(narrow, height=1, width=len(places))
                if self._is_whole(narrow, index):
                    return narrow.inputs[0]
                return self._add(replace(narrow, array=self._store(index)))
            case Constant() if is_narrow:
                array = self._store(self.stored.arrays[op.array][:, places])
                return self._add(replace(op, height=1, width=len(places), array=array))
        by_place, inputs = _by_place(op, self.tensors), []
        for k, at in enumerate(op.inputs):
            inputs.append(self._at(at, places if k in by_place else np.arange(_places(self.tensors[at]))))
        if isinstance(op, Conv) and is_narrow and len(places) == 1:
            op = self._as_vector(op, self.tensors[op.inputs[0]].rows)
        return self._add(replace(op, inputs=tuple(inputs)))

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.program.inputs) + len(self.ops) - 1

    def _at(self, at: int, places: Array) -> int:
        """The new tensor that holds just these places of an old one."""
        if np.array_equal(self.kept[at], places):
            return self.new[at]
        key = (at, places.tobytes())
        if key not in self.gathered:
            rows, kept = self.tensors[at].rows, self.kept[at]
            index = np.arange(rows)[:, None] * len(kept) + np.searchsorted(kept, places)
            op = Gather(inputs=(self.new[at],), array=self._store(index), rows=rows, height=1, width=len(places))
            self.gathered[key] = self._add(op)
        return self.gathered[key]

    def _index(self, op: Gather) -> Array:
        """Where the numbers that op reads are now."""
        index = self.stored.arrays[op.array]
        found: Array = np.zeros_like(index)
        start = start_now = 0
        for at in op.inputs:
            (rows, places), kept = (self.tensors[at].rows, _places(self.tensors[at])), self.kept[at]
            own = (index >= start) & (index < start + rows * places)
            row, place = np.divmod(index[own] - start, places)
            found[own] = start_now + row * len(kept) + np.searchsorted(kept, place)
            start, start_now = start + rows * places, start_now + rows * len(kept)
        return found

    def _is_whole(self, op: Gather, index: Array) -> bool:
        """Whether op makes the one tensor that it reads."""
        read = Program(self.program.inputs, tuple(self.ops), ()).tensors
        is_alike = len(op.inputs) == 1 and read[op.inputs[0]] == Sizes(op.rows, op.height, op.width)
        return is_alike and np.array_equal(index.ravel(), np.arange(index.size))

    def _as_vector(self, op: Conv, n_columns: int) -> Conv:
        """op with as many outputs to a block as is fastest for one place."""
        weight = self.stored.weights[op.weight]
        block = best_block(weight.dense(n_columns)[: op.rows], 1, op.bits, is_vector=True)
        if block == op.block:
            return op
        name = f"{op.weight}x{block}"  # other products may share the weight
        self.stored.weights[name] = weight.in_blocks(block, op.rows, n_columns)
        return replace(op, weight=name, block=block)

    def _store(self, array: Array) -> str:
        name = f"a{len(self.stored.arrays)}"
        self.stored.arrays[name] = array
        return name
