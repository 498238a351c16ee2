"""Packed weights: blocks of R outputs that share an input, zeros left out.

    y[b · R + r] = sum over p in [ptr[b], ptr[b + 1])  value[p, r] · x[index[p]]

R = 1 is unstructured; at density 1 every R is a dense matrix. Indices are logical (channel, ky, kx), so the same file
serves every layout; where the data lies is worked out after they have been checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighten.errors import ArtifactError

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ("ptr", "index", "value", "bias")


@dataclass(frozen=True)
class Packed:
    """ptr: int32 [blocks + 1]. index: int32 [nnz]. value: float32 [nnz, R]. bias: float32 [blocks · R]."""

    ptr: Array
    index: Array
    value: Array
    bias: Array

    @property
    def block(self) -> int:
        """R, outputs to a block."""
        return int(self.value.shape[1])

    def to_arrays(self, name: str) -> dict[str, Array]:
        """As an artifact stores it."""
        return {f"{name}.{part}": getattr(self, part) for part in PARTS}

    def dense(self, n_columns: int) -> Array:
        """The matrix [blocks · R, n_columns]; for tests, and to pack anew."""
        found = np.zeros((len(self.ptr) - 1, n_columns, self.block), np.float32)
        found[np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr)), self.index] = self.value
        return found.transpose(0, 2, 1).reshape(-1, n_columns)


def pack(weight: Array, bias: Array | None, block: int, groups: int = 1) -> Packed:
    """weight: float32 [n_out, n_in / groups, ...]; a block is stored where any of its R weights is not zero."""
    n_out = weight.shape[0]
    flat = weight.reshape(n_out, -1)
    row, column = np.nonzero(flat)  # NaN is not zero
    value = flat[row, column]
    width = flat.shape[1] * groups
    column = column + row // (n_out // groups) * flat.shape[1]
    n_blocks = -(-n_out // block)
    key, where = np.unique(row // block * np.int64(width) + column, return_inverse=True)
    values = np.zeros((len(key), block), np.float32)
    values[where, row % block] = value
    biases = np.zeros(n_blocks * block, np.float32)
    if bias is not None:
        biases[:n_out] = bias
    ptr = np.searchsorted(key, np.arange(n_blocks + 1) * np.int64(width)).astype(np.int32)
    return Packed(ptr, (key % width).astype(np.int32), values, biases)


def read_packed(arrays: Mapping[str, Array], name: str, *, rows: int, block: int, n_columns: int) -> Packed:
    """The weight of that name, with every index and size checked; arrays come from a file and are not trusted.

    Raises:
        ArtifactError: it is missing, or is not a packed [rows, n_columns] matrix.
    """
    n_blocks = -(-rows // block)
    ptr, index, value, bias = (read_array(arrays, f"{name}.{part}") for part in PARTS)
    nnz = len(index) if index.ndim == 1 else -1
    right = (
        (ptr.dtype.name, ptr.shape) == ("int32", (n_blocks + 1,))
        and (index.dtype.name, index.shape) == ("int32", (nnz,))
        and (value.dtype.name, value.shape) == ("float32", (nnz, block))
        and (bias.dtype.name, bias.shape) == ("float32", (n_blocks * block,))
        and ptr[0] == 0
        and ptr[-1] == nnz
        and bool(np.all(ptr[1:] >= ptr[:-1]))
        and (nnz == 0 or (int(index.min()) >= 0 and int(index.max()) < n_columns))
    )
    if not right:
        raise ArtifactError(
            f"The weight '{name}' is not a packed matrix of {rows} x {n_columns} in blocks of {block}. The file was "
            "damaged or was not written by lighten: export the model again."
        )
    return Packed(ptr, index, value, bias)


def read_array(arrays: Mapping[str, Array], name: str) -> Array:
    """The array of that name.

    Raises:
        ArtifactError: there is none.
    """
    if name not in arrays:
        raise ArtifactError(f"The weights hold no '{name}', which the plan needs. Export the model again.")
    return arrays[name]
