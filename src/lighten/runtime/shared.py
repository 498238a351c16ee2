"""Arrays in a file that two processes map: written by one, read by the other without a copy through a pipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lighten.errors import ConfigError
from lighten.runtime.spec import Array

ALIGNMENT = 64

Place = list[Any]
"""Where an array lies: [offset in bytes, dtype name, shape]."""


class SharedArrays:
    """The memory behind path, room_bytes of it. The file is sparse: what is never used takes no memory."""

    def __init__(self, path: Path, room_bytes: int | None = None) -> None:
        """room_bytes: create the file with that many; None = map one that is there."""
        if room_bytes is not None:
            with path.open("wb") as file:
                file.truncate(room_bytes)
        self._memory = np.memmap(path, dtype=np.uint8, mode="r+")

    def put(self, arrays: Sequence[Array]) -> list[Place]:
        """Copy arrays in, one after another, over whatever was there.

        Raises:
            ConfigError: there is not enough room.
        """
        places: list[Place] = []
        offset = 0
        for array in arrays:
            if offset + array.nbytes > len(self._memory):
                total = sum(each.nbytes for each in arrays)
                raise ConfigError(
                    f"{total} bytes do not fit in the {len(self._memory)} that two processes share. Use smaller "
                    "batches or a larger room_bytes."
                )
            place = [offset, array.dtype.name, list(array.shape)]
            self.view(place)[...] = array
            places.append(place)
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return places

    def view(self, place: Place) -> Array:
        """The array at place, not a copy: it changes with the memory."""
        offset, name, shape = place
        dtype = np.dtype(name)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._memory[offset : offset + n_bytes].view(dtype).reshape(shape).view(np.ndarray)
