"""The program under construction: operations, the arrays that they need, and the ids of their numbers."""

import hashlib
from bisect import bisect_right
from dataclasses import asdict

import torch
from torch import Tensor

from lighten.export.native.ids import CONSTANT, Ids
from lighten.runtime.native.packed import FLOAT_BITS, Array, Packed
from lighten.runtime.native.program import Cat, Constant, Gather, Op, Program, Reshape
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored


class Builder:
    """Grows a program operation by operation. bits: of a weight's value that is a float."""

    def __init__(self, bits: int = FLOAT_BITS) -> None:
        self.bits = bits
        self.n_inputs = 0
        self.ops: list[Op] = []
        self.sizes: list[Sizes] = []
        self.starts: list[int] = []  # the id of each tensor's first number
        self.stored = Stored()
        self._constants: list[Tensor] = []
        self._n_constants = 0
        self._kept: dict[bytes, str] = {}
        self._laid: dict[tuple[bytes, Sizes], int] = {}

    def add_input(self, sizes: Sizes) -> int:
        """The tensor of an input; before any operation."""
        self.n_inputs += 1
        return self._number(sizes)

    def add(self, op: Op) -> int:
        """The tensor that op makes.

        Raises:
            ValueError: it does not fit its inputs.
        """
        made = Program(tuple(self.sizes), (op,), ()).tensors[-1]
        self.ops.append(op)
        return self._number(made)

    def _number(self, sizes: Sizes) -> int:
        self.starts.append(self.starts[-1] + count(self.sizes[-1]) if self.sizes else 0)
        self.sizes.append(sizes)
        return len(self.sizes) - 1

    def program(self, outputs: tuple[int, ...]) -> Program:
        """What has been built."""
        return Program(tuple(self.sizes[: self.n_inputs]), tuple(self.ops), outputs)

    # Constants

    def ids_of(self, constant: Tensor) -> Ids:
        """Ids for the numbers of a constant; what repeats along the batch, whichever axis that is, is one number."""
        numbers = constant
        for axis, size in enumerate(constant.shape):
            if size == 2 and torch.equal(*numbers.split(1, axis)):
                numbers = numbers.narrow(axis, 0, 1)
        ids = torch.arange(numbers.numel()) + CONSTANT + self._n_constants
        self._constants.append(numbers.detach().to(torch.float32).flatten())
        self._n_constants += numbers.numel()
        return Ids(ids.reshape(numbers.shape).expand(constant.shape))

    # Where numbers lie

    def whole(self, ids: Tensor) -> int | None:
        """The tensor whose numbers, all of them and in order, ids are; None if there is none."""
        found = self.within(ids)
        return None if found is None or found[1] or ids.numel() != count(self.sizes[found[0]]) else found[0]

    def within(self, ids: Tensor) -> tuple[int, int] | None:
        """A tensor, and from which of its numbers on ids are the following ones, in order; None if there is none."""
        first = int(ids.flatten()[0])
        if first < 0:
            return None
        at = self._owner(first)
        skip = first - self.starts[at]
        is_run = torch.equal(ids.flatten(), torch.arange(first, first + ids.numel()))
        return (at, skip) if is_run and skip + ids.numel() <= count(self.sizes[at]) else None

    def part(self, ids: Tensor, is_line: bool = False) -> tuple[int, int] | None:
        """A tensor, and from which row on its rows are those of ids; None if there is none, or not with one line."""
        found = self.within(ids)
        if found is None:
            return None
        (at, skip), places = found, ids.shape[1]
        sizes = self.sizes[at]
        fits = sizes.height * sizes.width == places and skip % places == 0 and (sizes.height == 1 or not is_line)
        return (at, skip // places) if fits else None

    def rows_of(self, ids: Tensor, is_line: bool = False) -> tuple[int, int]:
        """As part(), made if need be."""
        return self.part(ids, is_line) or (self.lay(ids, Sizes(ids.shape[0], 1, ids.shape[1])), 0)

    def in_some_order(self, ids: Tensor) -> int | None:
        """The tensor each of whose numbers stands in ids once; None if there is none."""
        low = int(ids.min())
        if low < 0:
            return None
        at = self._owner(low)
        n = count(self.sizes[at])
        if low != self.starts[at] or ids.numel() != n or int(ids.max()) != low + n - 1:
            return None
        seen = torch.zeros(n, dtype=torch.bool)
        seen[ids.flatten() - low] = True
        return at if bool(seen.all()) else None

    def lay(self, ids: Tensor, sizes: Sizes | None = None) -> int:
        """The tensor with the rows and places of ids [rows, places], made if need be. sizes: None = in any grid."""
        whole = self.whole(ids)
        if whole is not None and self.sizes[whole].rows == len(ids) and sizes in (None, self.sizes[whole]):
            return whole
        sizes = sizes or Sizes(ids.shape[0], 1, ids.shape[1])
        is_constant = bool((ids < 0).all())
        content = (torch.cat(self._constants)[ids - CONSTANT] if is_constant else ids).contiguous().numpy()
        key = (hashlib.sha256(content.tobytes()).digest(), sizes)
        if key not in self._laid:
            if is_constant:
                op: Op = Constant(array=self.store(content), **asdict(sizes))
            elif whole is not None and sizes.height * sizes.width == 1:
                op = Reshape(inputs=(whole,), rows=sizes.rows)
            elif (parts := self._parts(ids, sizes)) is not None:
                op = Cat(inputs=parts)
            else:
                op = self._gathering(ids, sizes)
            self._laid[key] = self.add(op)
        return self._laid[key]

    def _gathering(self, ids: Tensor, sizes: Sizes) -> Gather:
        constants = ids[ids < 0].unique()
        inputs = [self.lay(constants[:, None])] if len(constants) else []
        index = torch.searchsorted(constants, ids.contiguous())  # right where ids are of constants
        owners = torch.bucketize(ids.contiguous(), torch.tensor(self.starts), right=True) - 1
        n_before = len(constants)
        for at in owners[ids >= 0].unique().tolist():
            mine = (owners == at) & (ids >= 0)
            index[mine] = ids[mine] - self.starts[at] + n_before
            n_before += count(self.sizes[at])
            inputs.append(at)
        return Gather(inputs=tuple(inputs), array=self.store(index.numpy()), **asdict(sizes))

    def store(self, array: Array) -> str:
        """The name of an array that an operation needs."""
        name = f"a{len(self.stored.arrays)}"
        self.stored.arrays[name] = array
        return name

    def keep(self, weight: Packed, bits: int) -> str:
        """The name of a weight: that of the same one, if it has been kept before. bits: of a value, as it has them."""
        parts = [weight.ptr, weight.index, weight.value, weight.bias, *([] if weight.scale is None else [weight.scale])]
        digest = hashlib.sha256(str([bits, *((part.shape, part.dtype) for part in parts)]).encode())
        for part in parts:
            digest.update(part.tobytes())
        name = self._kept.setdefault(digest.digest(), f"w{len(self._kept)}")
        self.stored.weights[name] = weight
        return name

    def _parts(self, ids: Tensor, sizes: Sizes) -> tuple[int, ...] | None:
        """The tensors that ids are, one after another, if they have the grid of sizes."""
        parts, row = [], 0
        while row < len(ids):
            first = int(ids[row, 0])
            at = self._owner(first) if first >= 0 else -1
            if at < 0 or (self.sizes[at].height, self.sizes[at].width) != (sizes.height, sizes.width):
                return None
            if self.whole(ids[row : row + self.sizes[at].rows]) != at:
                return None
            parts.append(at)
            row += self.sizes[at].rows
        return tuple(parts)

    def _owner(self, number: int) -> int:
        return bisect_right(self.starts, number) - 1


def count(sizes: Sizes) -> int:
    """Numbers of one sample."""
    return sizes.rows * sizes.height * sizes.width
