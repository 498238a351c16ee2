"""A Fashion-MNIST in miniature: the same four files, a few images, classes that a network tells apart in a moment."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor


def idx_bytes(elements: Tensor) -> bytes:
    """An IDX file of unsigned bytes, written independently of the reader under test."""
    header = bytes([0, 0, 8, elements.ndim]) + b"".join(struct.pack(">I", n) for n in elements.shape)
    return header + bytes(elements.flatten().tolist())


def write(path: Path, elements: Tensor) -> None:
    path.write_bytes(gzip.compress(idx_bytes(elements), compresslevel=1))


def write_fashion(folder: Path, n_train: int = 120, n_test: int = 30) -> Path:
    """Images of noise with a bright band of rows, one band a class."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part, n in (("train", n_train), ("t10k", n_test)):
        labels = torch.arange(n) % 10
        images = torch.randint(60, (n, 28, 28), generator=generator)
        for i, label in enumerate(labels.tolist()):
            images[i, 4 + 2 * label : 6 + 2 * label] += 180
        write(folder / f"{part}-images-idx3-ubyte.gz", images.to(torch.uint8))
        write(folder / f"{part}-labels-idx1-ubyte.gz", labels.to(torch.uint8))
    return folder
