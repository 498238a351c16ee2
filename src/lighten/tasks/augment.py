"""Random changes of image batches for training, a whole batch at a time, drawn from torch's global generator."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_flip(images: Tensor) -> Tensor:
    """Mirror about half of images [n, c, h, w] left to right."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Move each of images [n, c, h, w] by up to pixels in both directions; zeros move in."""
    n, channels, height, width = images.shape
    padded = F.pad(images, [pixels] * 4)
    top, left = torch.randint(2 * pixels + 1, (2, n, 1, 1, 1))
    rows = top + torch.arange(height)[:, None]  # [n, 1, h, 1]
    columns = left + torch.arange(width)  # [n, 1, 1, w]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]


def random_affine(images: Tensor, degrees: float, shift: float, scale: float) -> Tensor:
    """Rotate, move and zoom each of images [n, c, h, w] float; zeros move in.

    degrees: rotation of at most that much either way. shift: at most that share of the side. scale: zoom within
    1 ± scale.
    """
    angle, dx, dy, zoom = torch.rand(4, len(images)) * 2 - 1
    angle = angle * math.radians(degrees)
    zoom = 1 + zoom * scale
    # affine_grid's coordinates run from -1 to 1, so a share of the side is twice that many units.
    to_x = torch.stack([zoom * angle.cos(), -zoom * angle.sin(), 2 * shift * dx], -1)
    to_y = torch.stack([zoom * angle.sin(), zoom * angle.cos(), 2 * shift * dy], -1)
    grid = F.affine_grid(torch.stack([to_x, to_y], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
