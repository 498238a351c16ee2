"""Packing: codes of 2 to 8 bits as a stream of bytes, lowest bits first.

Code i of a row takes bits [i·bits, (i+1)·bits) of the stream, so 4-bit codes lie two a byte, 3-bit ones 8 in 3 bytes,
and a row is filled up with zeros to whole bytes. For 4 and 8 bits this is also the order of ONNX Runtime's MatMulNBits.
"""

import math

import torch
from torch import Tensor


def packed_length(n: int, bits: int) -> int:
    """Bytes that n codes take."""
    return -(-n * bits // 8)


def period(bits: int) -> tuple[int, int]:
    """(codes, bytes) after which the pattern of codes in bytes repeats."""
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes [..., n] uint8, each below 2^bits. Returns [..., packed_length(n, bits)] uint8."""
    n = codes.shape[-1]
    per, width = period(bits)
    if width == per:
        return codes.clone()
    words = torch.nn.functional.pad(codes, (0, -n % per)).unflatten(-1, (-1, per))
    out = torch.empty(*words.shape[:-1], width, dtype=torch.uint8, device=codes.device)
    for byte in range(width):
        # The codes that reach into this byte; a shift of uint8 drops what belongs to the neighbours.
        parts = [
            words[..., i] << (bits * i - 8 * byte) if bits * i >= 8 * byte else words[..., i] >> (8 * byte - bits * i)
            for i in range(per)
            if bits * i < 8 * (byte + 1) and bits * (i + 1) > 8 * byte
        ]
        out[..., byte] = parts[0]
        for part in parts[1:]:
            out[..., byte] |= part
    return out.flatten(-2)[..., : packed_length(n, bits)].contiguous()


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of pack: [..., n] uint8 codes from [..., packed_length(n, bits)]."""
    per, width = period(bits)
    if width == per:
        return packed.clone()
    words = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % width)).unflatten(-1, (-1, width))
    out = torch.empty(*words.shape[:-1], per, dtype=torch.uint8, device=packed.device)
    for i in range(per):
        byte, shift = divmod(bits * i, 8)
        code = words[..., byte] >> shift
        if shift + bits > 8:
            code = code | (words[..., byte + 1] << (8 - shift))
        out[..., i] = code & (2**bits - 1)
    return out.flatten(-2)[..., :n].contiguous()
