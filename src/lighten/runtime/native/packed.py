"""Packed weights: blocks of R outputs that share an input, zeros left out.

    y[b · R + r] = sum over p in [ptr[b], ptr[b + 1])  value[p, r] · x[index[p]]

R = 1 is unstructured; at density 1 every R is a dense matrix. Indices are logical (channel, ky, kx), so the same file
serves every layout; where the data lies is worked out after they have been checked.

In a file an index has the fewest bytes that hold the number of columns, and values are float32, or integer codes of 2
to 8 bits with a scale for each output, value = (code - 2^(bits-1)) · scale. Codes become float32 when they are read:
they make the file smaller and leave the speed alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighten.errors import ArtifactError

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT_BITS = 32


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

    def to_arrays(self, name: str, n_columns: int, grid: "Grid | None" = None) -> dict[str, Array]:
        """As an artifact stores it. grid: on which all values lie, None = store them as they are."""
        parts = {"ptr": self.ptr, "index": self.index.astype(index_type(n_columns)), "bias": self.bias}
        if grid is None:
            parts["value"] = self.value
        else:
            scale = np.zeros(len(self.bias), np.float32)
            scale[: len(grid.scale)] = grid.scale
            parts |= {"scale": scale, "code": grid.encode(self.value, _of_values(scale, self.ptr))}
        return {f"{name}.{part}": array for part, array in parts.items()}

    def dense(self, n_columns: int) -> Array:
        """The matrix [blocks · R, n_columns]; for tests, and to pack anew."""
        found = np.zeros((len(self.ptr) - 1, n_columns, self.block), np.float32)
        found[np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr)), self.index] = self.value
        return found.transpose(0, 2, 1).reshape(-1, n_columns)


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: integers of that many bits, symmetric, times scale [rows]."""

    bits: int
    scale: Array

    def encode(self, value: Array, scale: Array) -> Array:
        """The codes of value, which lies on the grid of scale, both [nnz, R]; a stream of bits, lowest first."""
        # A scale is 0 where the whole row is.
        code = np.rint(value / np.where(scale == 0, 1, scale)).astype(np.int64) + 2 ** (self.bits - 1)
        return np.packbits(code.reshape(-1, 1) >> np.arange(self.bits) & 1, bitorder="little")


def decode(stream: Array, shape: tuple[int, int], bits: int, scale: Array) -> Array:
    """The inverse of Grid.encode: values float32 of that shape; scale: of each."""
    code = np.unpackbits(stream, count=shape[0] * shape[1] * bits, bitorder="little").reshape(*shape, bits)
    value: Array = ((code @ (1 << np.arange(bits)) - 2 ** (bits - 1)) * scale).astype(np.float32)
    return value


def index_type(n_columns: int) -> np.dtype[Any]:
    """The type with the fewest bytes that holds every column."""
    return np.min_scalar_type(n_columns - 1)


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


def read_packed(
    arrays: Mapping[str, Array], name: str, *, rows: int, block: int, n_columns: int, bits: int = FLOAT_BITS
) -> Packed:
    """The weight of that name, with every index and size checked; arrays come from a file and are not trusted.

    Raises:
        ArtifactError: it is missing, or is not a packed [rows, n_columns] matrix of values of that many bits.
    """
    n_rows = -(-rows // block) * block
    ptr, index, bias = (read_array(arrays, f"{name}.{part}") for part in ("ptr", "index", "bias"))
    nnz = len(index) if index.ndim == 1 else -1
    right = (
        _is(ptr, "int32", (n_rows // block + 1,))
        and _is(index, index_type(n_columns).name, (nnz,))
        and _is(bias, "float32", (n_rows,))
        and ptr[0] == 0
        and ptr[-1] == nnz
        and bool(np.all(ptr[1:] >= ptr[:-1]))
        and (nnz == 0 or int(index.max()) < n_columns)
    )
    value = _read_values(arrays, name, (nnz, block), bits, ptr) if right else None
    if value is None:
        raise ArtifactError(
            f"The weight '{name}' is not a packed matrix of {rows} x {n_columns} in blocks of {block}. The file was "
            "damaged or was not written by lighten: export the model again."
        )
    return Packed(ptr, index.astype(np.int32), value, bias)


def _read_values(arrays: Mapping[str, Array], name: str, shape: tuple[int, int], bits: int, ptr: Array) -> Array | None:
    """float32 of that shape; None where what is stored does not fit it."""
    if bits == FLOAT_BITS:
        value = read_array(arrays, f"{name}.value")
        return value if _is(value, "float32", shape) else None
    stream, scale = (read_array(arrays, f"{name}.{part}") for part in ("code", "scale"))
    fits = _is(stream, "uint8", (-(-shape[0] * shape[1] * bits // 8),))
    fits = fits and _is(scale, "float32", ((len(ptr) - 1) * shape[1],))
    return decode(stream, shape, bits, _of_values(scale, ptr)) if fits else None


def _of_values(per_row: Array, ptr: Array) -> Array:
    """[nnz, R] from [blocks · R]."""
    return np.repeat(per_row.reshape(len(ptr) - 1, -1), np.diff(ptr), axis=0)


def _is(array: Array, dtype: str, shape: tuple[int, ...]) -> bool:
    return (array.dtype.name, array.shape) == (dtype, shape)


def read_array(arrays: Mapping[str, Array], name: str) -> Array:
    """The array of that name.

    Raises:
        ArtifactError: there is none.
    """
    if name not in arrays:
        raise ArtifactError(f"The weights hold no '{name}', which the plan needs. Export the model again.")
    return arrays[name]
