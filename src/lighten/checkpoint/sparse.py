"""Layouts of a tensor in a file: dense, or one bit an element and the values that are not zero.

The bits say which elements are there, in row-major order, eight to a byte, the first in the highest bit; the values
follow in the same order. At 90 % sparsity a float32 weight takes 0.4 + 0.125 bytes an element instead of 4. Runs of 2:4
take the same bit an element that NVIDIA's compressed layout spends on its indices (two bits for each of two of four),
so they need no layout of their own: half the values and one bit, 2.125 bytes an element.
Bit-exact: an element is left out only where all its bits are zero (-0.0 is a value).
"""

import math

import numpy as np
import torch
from torch import Tensor

from lighten.errors import ArtifactError

DENSE, BITMASK = "dense", "bitmask"
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 [⌈n / 8⌉] of bool mask with n elements."""
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of pack_bits.

    Raises:
        ArtifactError: bits has not the length that shape needs.
    """
    n = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != ((n + 7) // 8,):
        raise ArtifactError(f"The bitmask of a tensor {list(shape)} has {list(bits.shape)} {bits.dtype}: file damaged.")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=n).astype(bool)).view(shape)


def nonzero_bits(tensor: Tensor) -> Tensor:
    """bool of tensor's shape: whether any bit of the element is set."""
    return _as_integers(tensor) != 0


def choose_layout(tensor: Tensor) -> str:
    """The layout that takes fewer bytes; dense where there is little to win."""
    if tensor.is_complex() or tensor.numel() < 64:
        return DENSE
    stored = int(nonzero_bits(tensor).sum()) * tensor.element_size() + tensor.numel() / 8
    return BITMASK if stored < 0.95 * tensor.numel() * tensor.element_size() else DENSE


def compress(tensor: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(bits, values) of tensor; what mask leaves out must be zero."""
    return pack_bits(mask), _as_integers(tensor)[mask].view(tensor.dtype)


def expand(bits: Tensor, values: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(tensor, mask): the inverse of compress.

    Raises:
        ArtifactError: the parts do not belong together.
    """
    mask = unpack_bits(bits, shape)
    if values.shape != (int(mask.sum()),):
        raise ArtifactError(
            f"A tensor {list(shape)} has {int(mask.sum())} bits set, but {values.numel()} values: file damaged."
        )
    codes = _as_integers(values)
    return codes.new_zeros(shape).masked_scatter_(mask, codes).view(values.dtype), mask


def _as_integers(tensor: Tensor) -> Tensor:
    """The bits of tensor: moving bfloat16 numbers about may change the bits of a NaN."""
    return tensor.contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()])
