"""The IDX format of MNIST and its relatives, read strictly.

Source: LeCun et al., http://yann.lecun.com/exdb/mnist/, "file formats": two zero bytes, one byte for the element type
(0x08 = unsigned byte), one for the number of axes, each axis as a big-endian uint32, then the elements.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighten.errors import TaskError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in a gzipped IDX file, with the shape its header gives.

    Raises:
        TaskError: not there, not gzip, cut short, too long, or not an IDX file of unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise TaskError(f"There is no file '{path}'.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(
            f"Cannot unpack '{path}': {error}. The file is damaged or cut short; fetch it again."
        ) from error
    return parse_idx(content, str(path))


def parse_idx(content: bytes, source: str) -> Tensor:
    """The uint8 tensor in the bytes of an unpacked IDX file; source names it in errors.

    Raises:
        TaskError: see read_idx.
    """
    if len(content) < 4:
        raise TaskError(f"'{source}' holds {len(content)} bytes; an IDX header alone is longer. Fetch it again.")
    zeros, kind, n_axes = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != UNSIGNED_BYTE:
        raise TaskError(
            f"'{source}' starts with 0x{content[:4].hex()}, which is not an IDX file of unsigned bytes (0x000008..). "
            "Check that the file is what its name says."
        )
    n_header = 4 + 4 * n_axes
    if len(content) < n_header:
        raise TaskError(
            f"'{source}' is cut short inside its header: {len(content)} of {n_header} bytes. Fetch it again."
        )
    shape = struct.unpack_from(f">{n_axes}I", content, 4)
    n_found, n_expected = len(content) - n_header, math.prod(shape)
    if n_found != n_expected:
        raise TaskError(
            f"'{source}' holds {n_found} bytes after its header, which promises {n_expected} (shape {list(shape)}). "
            "The file is damaged; fetch it again."
        )
    elements = np.frombuffer(content, np.uint8, offset=n_header).reshape(shape)
    return torch.from_numpy(elements.copy())  # a copy, because bytes are read-only and tensors are not
