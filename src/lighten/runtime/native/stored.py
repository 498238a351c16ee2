"""What the operations of a program need beside it: packed weights, constants, indices; checked when they are read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lighten.errors import ArtifactError
from lighten.runtime.native.packed import Array, Packed, index_type, read_array, read_packed
from lighten.runtime.native.program import Constant, Conv, Embedding, Gather, Program, Tensor


@dataclass(frozen=True)
class Stored:
    """weights: of convolutions. arrays: float32 of constants, int64 of gathers, both [rows, height · width]; tables."""

    weights: dict[str, Packed] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


def to_arrays(program: Program, stored: Stored) -> dict[str, Array]:
    """As an artifact stores it."""
    tensors = program.tensors
    arrays: dict[str, Array] = {}
    for op in program.ops:
        inputs = [tensors[at] for at in op.inputs]
        match op:
            case Conv():
                n_columns = inputs[0].rows * math.prod(op.kernel)
                arrays |= stored.weights[op.weight].to_arrays(op.weight, n_columns, op.bits)
            case Constant():
                arrays[op.array] = stored.arrays[op.array]
            case Embedding():
                arrays[op.table] = stored.arrays[op.table]
            case Gather():
                arrays[op.array] = stored.arrays[op.array].astype(index_type(_count(inputs)))
    return arrays


def read_stored(program: Program, arrays: Mapping[str, Array]) -> Stored:
    """The inverse of to_arrays; every index and size is checked, since arrays come from a file and are not trusted.

    Raises:
        ArtifactError: an array is missing, or is not what an operation needs.
    """
    tensors, stored = program.tensors, Stored()
    for op in program.ops:
        inputs = [tensors[at] for at in op.inputs]
        match op:
            case Conv():
                n_columns = inputs[0].rows * math.prod(op.kernel)
                weight = read_packed(arrays, op.weight, rows=op.rows, block=op.block, n_columns=n_columns, bits=op.bits)
                stored.weights[op.weight] = weight
            case Constant():
                stored.arrays[op.array] = _read(arrays, op.array, "float32", (op.rows, op.height * op.width))
            case Embedding():
                stored.arrays[op.table] = _read(arrays, op.table, "float32", (op.entries, op.rows))
            case Gather():
                dtype, shape = index_type(_count(inputs)).name, (op.rows, op.height * op.width)
                index = _read(arrays, op.array, dtype, shape).astype(np.int64)
                if int(index.max()) >= _count(inputs):
                    raise ArtifactError(
                        f"'{op.array}' reads past its {_count(inputs)} numbers. Export the model again."
                    )
                stored.arrays[op.array] = index
    return stored


def _read(arrays: Mapping[str, Array], name: str, dtype: str, shape: tuple[int, int]) -> Array:
    array = read_array(arrays, name)
    if (array.dtype.name, array.shape) != (dtype, shape):
        raise ArtifactError(
            f"'{name}' is {array.dtype} {list(array.shape)} and not {dtype} {list(shape)}. Export the model again."
        )
    return array


def _count(inputs: list[Tensor]) -> int:
    return sum(t.rows * t.height * t.width for t in inputs)
