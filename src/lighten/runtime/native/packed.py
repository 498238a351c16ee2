"""Packed weights: blocks of R outputs that share an input, zeros left out.

    y[b · R + r] = sum over p in [ptr[b], ptr[b + 1])  value[p, r] · x[index[p]]

R = 1 is unstructured; at density 1 every R is a dense matrix. Indices are logical (channel, ky, kx), so the same file
serves every layout; where the data lies is worked out after they have been checked.

A value is stored, in a file and in memory, as float32, or as bfloat16, which is the upper half of a float32, or as an
integer code of 2 to 8 bits with a scale for each output, value = code · scale. In a file an index has the fewest bytes
that hold the number of columns, and codes are a stream of bits; in memory a code is an int8.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lighten.errors import ArtifactError

Array = np.ndarray[Any, np.dtype[Any]]
CODE_BITS, BFLOAT_BITS, FLOAT_BITS = range(2, 9), 16, 32


@dataclass(frozen=True)
class Packed:
    """ptr: int32 [blocks + 1]. index: int32 [nnz]. bias: float32 [blocks · R].

    value: [nnz, R], float32; uint16 where it is bfloat16; int8 where it is codes, whose scale is float32 [blocks · R].
    """

    ptr: Array
    index: Array
    value: Array
    bias: Array
    scale: Array | None = None

    @property
    def block(self) -> int:
        """R, outputs to a block."""
        return int(self.value.shape[1])

    def to_arrays(self, name: str, n_columns: int, bits: int = FLOAT_BITS) -> dict[str, Array]:
        """As an artifact stores it. bits: of a value, as this weight has them."""
        parts = {"ptr": self.ptr, "index": self.index.astype(index_type(n_columns)), "bias": self.bias}
        if self.scale is None:
            parts["value"] = self.value
        else:
            parts |= {"scale": self.scale, "code": _to_stream(self.value, bits)}
        return {f"{name}.{part}": array for part, array in parts.items()}

    def on_grid(self, scale: Array) -> "Packed":
        """The same values, float32 so far and whole multiples of scale [rows], as codes."""
        scales = np.zeros(len(self.bias), np.float32)
        scales[: len(scale)] = scale
        # A scale is 0 where the whole row is.
        codes = np.rint(self.value / _of_values(np.where(scales == 0, 1, scales), self.ptr)).astype(np.int8)
        return replace(self, value=codes, scale=scales)

    def in_bfloat16(self) -> "Packed":
        """The same values, float32 so far and none of them more exact than a bfloat16, at half the size."""
        return replace(self, value=(self.value.view(np.uint32) >> 16).astype(np.uint16))

    @cached_property
    def floats(self) -> "Packed":
        """The same values as float32, made once, so that engines can share them."""
        if self.scale is not None:
            return replace(self, value=self.value * _of_values(self.scale, self.ptr), scale=None)
        if self.value.dtype == np.uint16:
            return replace(self, value=(self.value.astype(np.uint32) << 16).view(np.float32))
        return self

    def in_blocks(self, block: int, rows: int, n_columns: int) -> "Packed":
        """The same matrix [rows, n_columns] with so many outputs to a block, to the same bits."""
        # Columns of a group are counted among all of them, so to pack it there are no groups.
        packed = pack(self.dense(n_columns)[:rows], self.bias[:rows], block)
        if self.scale is not None:
            return packed.on_grid(self.scale[:rows])
        return packed.in_bfloat16() if self.value.dtype == np.uint16 else packed

    def dense(self, n_columns: int) -> Array:
        """The matrix [blocks · R, n_columns] of floats."""
        found = np.zeros((len(self.ptr) - 1, n_columns, self.block), np.float32)
        found[np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr)), self.index] = self.floats.value
        return found.transpose(0, 2, 1).reshape(-1, n_columns)


def _to_stream(codes: Array, bits: int) -> Array:
    """Codes as a stream of bits, lowest first, each with 2^(bits-1) added to it."""
    raised = codes.reshape(-1, 1).view(np.uint8) + np.uint8(2 ** (bits - 1))
    return np.packbits(np.unpackbits(raised, axis=1, count=bits, bitorder="little"), bitorder="little")


def _from_stream(stream: Array, shape: tuple[int, int], bits: int) -> Array:
    """The inverse of _to_stream: codes int8 of that shape."""
    each = np.unpackbits(stream, count=shape[0] * shape[1] * bits, bitorder="little").reshape(-1, bits)
    raised = np.packbits(each, axis=1, bitorder="little")  # missing bits are zeros
    codes: Array = (raised - np.uint8(2 ** (bits - 1))).view(np.int8)  # wraps to what is negative
    return codes.reshape(shape)


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
    values = _read_values(arrays, name, (nnz, block), bits, n_rows) if right else None
    if values is None:
        raise ArtifactError(
            f"The weight '{name}' is not a packed matrix of {rows} x {n_columns} in blocks of {block}. The file was "
            "damaged or was not written by lighten: export the model again."
        )
    return Packed(ptr, index.astype(np.int32), values[0], bias, values[1])


def _read_values(
    arrays: Mapping[str, Array], name: str, shape: tuple[int, int], bits: int, n_rows: int
) -> tuple[Array, Array | None] | None:
    """Values of that shape as Packed has them, and their scale; None where what is stored does not fit."""
    if bits not in CODE_BITS:
        value = read_array(arrays, f"{name}.value")
        return (value, None) if _is(value, "float32" if bits == FLOAT_BITS else "uint16", shape) else None
    stream, scale = (read_array(arrays, f"{name}.{part}") for part in ("code", "scale"))
    fits = _is(stream, "uint8", (-(-shape[0] * shape[1] * bits // 8),)) and _is(scale, "float32", (n_rows,))
    return (_from_stream(stream, shape, bits), scale) if fits else None


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
