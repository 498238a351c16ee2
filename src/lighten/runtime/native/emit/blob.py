"""The constants of a network: weights, offsets, masks and cuts, one after another in memory."""

from functools import cached_property

import numpy as np

from lighten.runtime.native.packed import Array

LINE = 64


class Blob:
    """Arrays one after another, each on a cache line of its own; an array that is there already is not stored twice.

    Several networks may share one, and with it the weights that they have in common.
    """

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.offsets: dict[int, int] = {}
        self.size = 0

    def add(self, array: Array) -> int:
        """Where array lies, in bytes."""
        if id(array) not in self.offsets:
            assert "memory" not in vars(self), "written already"
            self.offsets[id(array)] = self.size
            self.parts.append(array)  # kept, so that its id stays its own
            self.size += -(-array.nbytes // LINE) * LINE + LINE  # a vector may read past the end of the last
        return self.offsets[id(array)]

    @cached_property
    def memory(self) -> Array:
        """All of it, uint8; nothing can be added any more."""
        memory = aligned(self.size)
        for array in self.parts:
            start = self.offsets[id(array)]
            memory[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        return memory


def aligned(size: int) -> Array:
    """uint8 zeros, size of them, from a cache line's start on."""
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]
