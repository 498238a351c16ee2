"""Batches along the vectors: where every tensor has one place, samples are computed side by side, as places are.

An engine reads all weights for each sample. The same program with samples for places reads them once for `width`
samples, and its vectors are full. What it computes is the same up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighten.runtime.native.emit.blob import Blob
from lighten.runtime.native.engine import Engine
from lighten.runtime.native.jit import host_target
from lighten.runtime.native.packed import Array
from lighten.runtime.native.profiler import Profiler
from lighten.runtime.native.program import (
    MAX_SIZE,
    Cat,
    Constant,
    Conv,
    Elements,
    Norm,
    Op,
    Program,
    Reduce,
    Reshape,
    Softmax,
)
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.schedule import Target
from lighten.runtime.native.stored import Stored

# Measured on a 784-1024-1024-10 network, 90 % zeros: a vector of 16 samples takes 1.6 times as long as a single one
# (4x1 blocks: 1.9), two vectors 1.4 times as long as one (1.9), and more at once gain nothing.
WIDE = 2  # vectors of samples that are computed side by side, where the second is not empty
FEWEST = 2  # samples for which a vector that they do not fill is faster than each on its own


def side_by_side(program: Program, width: int) -> Program | None:
    """program with `width` samples as the places of every tensor but constants; None where that is another program."""
    n_inputs, sizes, constants, ops = len(program.inputs), program.tensors, set[int](), list[Op]()
    read_in_order = {at for op in program.ops if not isinstance(op, Reshape) for at in op.inputs} | {*program.outputs}
    for at, t in enumerate(sizes):  # an input's places may be rows where nothing but a reshape reads it
        may_be_rows = at < n_inputs and at not in read_in_order
        if (t.height * t.width > 1 and not may_be_rows) or t.rows * t.height * t.width * width > MAX_SIZE:
            return None
    for at, op in enumerate(program.ops, n_inputs):
        if isinstance(op, Constant):
            constants.add(at)
        elif not _is_by_place(op, [each in constants for each in op.inputs]):
            return None
        ops.append(Elements(inputs=op.inputs) if isinstance(op, Reshape) else op)
    if constants & {*program.outputs}:
        return None
    inputs = tuple(Sizes(t.rows * t.height * t.width, 1, width) for t in program.inputs)
    return Program(inputs, tuple(ops), program.outputs)


def _is_by_place(op: Op, are_constant: Sequence[bool]) -> bool:
    """Whether each place of what op makes is of the same place of its inputs, or of constants."""
    match op:
        case Conv():
            return op.is_pointwise and not any(are_constant)
        case Reduce():
            return op.groups > 0 and not any(are_constant)
        case Softmax() | Cat() | Reshape():
            return not any(are_constant)
        case Norm():
            return [*are_constant] == [False, True, True]
        case Elements():
            return not all(are_constant)
        case _:
            return False


@dataclass(frozen=True)
class Way:
    """engine: of `width` samples side by side. fewest: for which it is the fastest way, the others being zeros."""

    engine: Engine
    width: int
    fewest: int


@dataclass(frozen=True)
class Batched:
    """Call as an Engine. ways: the widest first, the last for single samples. shapes: of outputs, without the batch."""

    ways: Sequence[Way]
    shapes: Sequence[tuple[int, ...]]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """See the class."""
        n, start = len(arrays[0]), 0
        outputs = [np.empty((n, *shape), np.float32) for shape in self.shapes]
        for way in self.ways:
            rest = (n - start) % way.width
            end = n if rest >= way.fewest else n - rest
            if end > start:
                part = [_in_chunks(array[start:end], way.width) for array in arrays]
                for output, found in zip(outputs, way.engine(part), strict=True):
                    output[start:end] = found.reshape(-1, *output.shape[1:])[: end - start]
                start = end
        return outputs


def _in_chunks(array: Array, width: int) -> Array:
    """[chunks, width · numbers of a sample], filled up with zeros."""
    missing = -len(array) % width
    filled = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else array
    return filled.reshape(len(filled) // width, -1)


def engine_for(
    program: Program,
    stored: Stored,
    shapes: Sequence[tuple[int, ...]],
    *,
    threads: int = 1,
    target: Target | None = None,
    lingers: bool = True,
    keeps_code: bool = True,
    profiler: Profiler | None = None,
) -> Engine | Batched:
    """The engine of program, or of several ways to compute it, which share weights. Arguments: see Engine."""
    blob, target = Blob(), target or host_target()
    how: dict[str, Any] = {"threads": threads, "target": target, "blob": blob, "lingers": lingers}
    how |= {"keeps_code": keeps_code, "profiler": profiler}
    single = Engine(program, stored, shapes, **how)
    ways = []
    for width, fewest in ((WIDE * target.lanes, (WIDE - 1) * target.lanes + 1), (target.lanes, FEWEST)):
        chunk = side_by_side(program, width)
        if chunk is None:
            return single
        of_chunk = [(width, *shape) for shape in shapes]
        engine = Engine(chunk, stored, of_chunk, are_samples=True, **how)
        ways.append(Way(engine, width, fewest))
    return Batched((*ways, Way(single, 1, 1)), shapes)
