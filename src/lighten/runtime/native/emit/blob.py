"""The constants of a network: weights, offsets, masks and cuts, one after another in memory."""

import numpy as np

from lighten.runtime.native.packed import Array

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
